"""Programs of torch.export: a traced program as the bytes of a ``.pt2`` file, and such bytes as a function."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from oekd_fast.family.exporting.comparison import outputs_of

SUFFIX = ".pt2"
METADATA = "metadata.json"  # name of the extra file in the archive
LARGEST = None  # bytes


def check_available() -> None:
    """Do nothing: torch alone writes and reads programs."""


def encode(
    program: ExportedProgram, example: Tensor, outputs: Sequence[str], entries: Mapping[str, Any], dynamic: bool
) -> bytes:
    """Return the bytes of an archive that holds `program`, and `entries` as JSON in the extra file `METADATA`.

    The other arguments are those of other formats; a program holds their values itself.
    """
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # has paths of this machine
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, content, extra_files={METADATA: json.dumps(entries, ensure_ascii=False)})
    return content.getvalue()


def load(content: bytes) -> Callable[[Tensor], list[Tensor]]:
    """Return a function that runs the bytes of an archive on the CPU."""
    network = torch.export.load(io.BytesIO(content)).module()
    return lambda images: outputs_of(network, images)
