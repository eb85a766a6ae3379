"""Calls of networks in ONNX Runtime, on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from oekd_fast.common.packages import require
from oekd_fast.family.exporting.comparison import plain_numerics
from oekd_fast.family.exporting.contents import INPUT
from oekd_fast.family.exporting.export import trace
from oekd_fast.family.exporting.onnx_format import LARGEST, check_available, encode
from oekd_fast.latency.networks import Network

# Time of turning a traced program into ONNX, in times of tracing it.
_ENCODING = 5.0


class TooSlowError(RuntimeError):
    """There is no time to export the networks."""


class Onnx:
    """ONNX Runtime with its default optimisations.

    Args:
        models: the ONNX model of each network, which takes uint8 images.
    """

    name, device = "onnx", "cpu"

    def __init__(self, models: Sequence[bytes]) -> None:
        self._models = models

    @contextmanager
    def calls(self, threads: int | None, images: Tensor) -> Iterator[list[Callable[[], float]]]:
        """See `Runtime`."""
        onnxruntime = _onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = threads
        # The threads of a session wait actively for its next call, on the cores that the other networks need then.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        feeds = {INPUT: images.numpy()}
        yield [
            partial(_timed, onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]), feeds)
            for model in self._models
        ]


def export_in_time(networks: Sequence[Network], seconds: float, stopping: Callable[[], bool]) -> list[bytes]:
    """Return the ONNX model of each network.

    The whole family is exported once, and the model of each student is cut from that of the ensemble, which takes less
    time than as many exports. The graph of a student is the one that its own export has.

    Args:
        networks: the students, then the ensemble if there are several.
        seconds: time that may pass; nothing is begun that is expected to end later.
        stopping: returns whether to give up; asked between the steps.

    Raises:
        TooSlowError: there is no time, or `stopping` returned True.
        ImportError: a package is not installed.
        ExportError: a network cannot be traced.
        Others: the exporter of PyTorch documents no set of exceptions.
    """
    start = time.perf_counter()

    def check_time(expected: float) -> None:
        if stopping() or time.perf_counter() - start + expected > seconds:
            raise TooSlowError("exporting takes too long")

    check_time(0.0)
    check_available()  # imports the packages, which takes a second
    family, smallest = networks[-1], min(networks, key=lambda network: network.cost)
    if 4 * sum(tensor.numel() for tensor in family.module.state_dict().values()) > LARGEST:
        raise ValueError("the family is too large for one ONNX file")
    example = family.images.example(2, seed=0)
    with plain_numerics():
        check_time(0.0)
        _, of_smallest = _timed_trace(smallest, example)
        check_time(of_smallest * len(networks))
        program, of_family = _timed_trace(family, example)
        check_time(of_family * _ENCODING)
        model = encode(program, example, family.outputs, {}, True)
    if len(networks) == 1:
        return [model]
    return [*(_cut(model, output) for output in family.outputs[: len(networks) - 1]), model]


def _timed_trace(network: Network, example: Tensor) -> tuple[ExportedProgram, float]:
    start = time.perf_counter()
    return trace(network.module, example, dynamic=True), time.perf_counter() - start


def _cut(model: bytes, output: str) -> bytes:
    """Return the part of `model` that computes one of its outputs."""
    onnx, utils = (require(name, "ONNX files need", "export") for name in ("onnx", "onnx.utils"))
    return utils.Extractor(onnx.load_model_from_string(model)).extract_model([INPUT], [output]).SerializeToString()


def version() -> str:
    """Return the version of ONNX Runtime."""
    return _onnxruntime().__version__


def _onnxruntime() -> Any:
    return require("onnxruntime", "ONNX files need", "export")


def _timed(session: Any, feeds: dict[str, Any]) -> float:
    start = time.perf_counter()
    session.run(None, feeds)
    return time.perf_counter() - start
