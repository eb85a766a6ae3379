"""ONNX: a traced program as the bytes of a model in one file, and such bytes as a function that runs them."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from oekd_fast.common.packages import require
from oekd_fast.family.exporting.contents import INPUT

if TYPE_CHECKING:
    import onnx

SUFFIX = ".onnx"
# The oldest that the exporter of PyTorch writes without conversions; ONNX Runtime reads it from version 1.14 (2023) on.
OPSET = 18
LARGEST = 2**31 - 2**20  # bytes; Protocol Buffers end at 2 GiB, and the graph needs some of them


def check_available() -> None:
    """Raise ImportError, with the command that installs it, if a package is missing."""
    require("onnx", "ONNX files need", "export")
    require("onnxscript", "ONNX files need", "export")
    require("onnxruntime", "ONNX files need", "export")


def encode(
    program: ExportedProgram, example: Tensor, outputs: Sequence[str], entries: Mapping[str, Any], dynamic: bool
) -> bytes:
    """Return the bytes of a model with the weights, which has `entries` as metadata.

    Args:
        program: program of the argument ``images``.
        example: images that the program was traced with.
        outputs: names of the outputs.
        entries: values by name; texts are stored as they are, others as JSON.
        dynamic: whether the model takes any number of images.

    Raises:
        ValueError: the graph has an operator that is not part of ONNX.
    """
    shapes = {INPUT: {0: "batch"} if dynamic else {}}
    with _quiet():
        model = torch.onnx.export(
            program,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            dynamic_shapes=shapes,
        ).model_proto
    _check_operators(model)
    _remove_traces(model)
    _set_entries(model, entries)
    return model.SerializeToString()


def with_entries(content: bytes, entries: Mapping[str, Any]) -> bytes:
    """Return the bytes of the model in `content` with `entries` added to its metadata; they replace equal names."""
    model = require("onnx", "ONNX files need", "export").load_model_from_string(content)
    _set_entries(model, entries)
    return model.SerializeToString()


def load(content: bytes) -> Callable[[Tensor], list[Tensor]]:
    """Return a function that runs the bytes of a model with ONNX Runtime, on the CPU with the default optimisations."""
    onnxruntime = require("onnxruntime", "ONNX files need", "export")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(z) for z in session.run(None, {INPUT: images.numpy()})]


def _set_entries(model: onnx.ModelProto, entries: Mapping[str, Any]) -> None:
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key not in entries]
    texts = [(k, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for k, v in entries.items()]
    del model.metadata_props[:]
    for key, value in kept + texts:
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def _check_operators(model: onnx.ModelProto) -> None:
    domains = {opset.domain for opset in model.opset_import} | {node.domain for node in model.graph.node}
    foreign = sorted({node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    if foreign or model.functions or domains - {"", "ai.onnx"}:
        raise ValueError(
            f"network: expected operators of ONNX alone, got {', '.join(foreign) or ', '.join(sorted(domains))}"
        )


def _remove_traces(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes of Python code: stack traces with paths of this machine, and class names."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of the exporter about its own use of PyTorch and of itself."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)
