"""The neighbouring bytes of memory that the threads of a warp access at once, from Triton's layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


def narrowest_segment(ttgir: str, arguments: Mapping[str, Any]) -> int | None:
    """Return the bytes of the narrowest segment in the accesses to tiles [ROWS, BLOCK] of logits and gradients.

    Args:
        ttgir: The kernel in Triton's intermediate representation for GPUs.
        arguments: Of the launch; UNIT is the axis of a tile along which elements are neighbours in memory.

    Returns:
        None without such an axis or such accesses.
    """
    axis = arguments.get("UNIT", -1)
    if axis < 0:
        return None
    shape = arguments.get("ROWS", 1), arguments["BLOCK"]
    layouts = dict(re.findall(r"(#\w+) = #ttg\.blocked<\{(.*?)\}>", ttgir))
    access = rf"tt\.(?:load|store) .*tensor<{shape[0]}x{shape[1]}x!tt\.ptr<(\w+)>, (#\w+)>"
    segments = [
        min(_neighbours(layouts[layout], axis), shape[axis]) * _BYTES[dtype]
        for dtype, layout in re.findall(access, ttgir)
        if layout in layouts and dtype in _BYTES
    ]
    return min(segments, default=None)


def _neighbours(layout: str, axis: int) -> int:
    """Return the elements along an axis that a warp holds as neighbours."""
    fields = {
        name: [int(n) for n in values.split(",")] for name, values in re.findall(r"(\w+) = \[([\d, ]+)\]", layout)
    }
    of_thread = fields["sizePerThread"][axis]
    return of_thread * fields["threadsPerWarp"][axis] if fields["order"][0] == axis else of_thread
