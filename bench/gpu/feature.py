"""The intermediate loss on a GPU, as bench.ops.feature_kd measures it: a case is one block."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..ops import feature_kd


def keys(quick: bool = False) -> list[str]:
    return [f"{block} bfloat16" for block in (feature_kd.BLOCKS[2:3] if quick else feature_kd.BLOCKS)]


def measure(key: str, emit: Callable[[dict], None], deadline: float, quick: bool) -> None:
    block, dtype = key.split()
    emit(feature_kd.measure(block, feature_kd.BATCH, getattr(torch, dtype), True, 10 if quick else 30))
