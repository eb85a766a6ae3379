"""Recognises the scores of attention, q k, and the numbers by which they are scaled."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from oekd_fast.models.any_network.calls import Call
from oekd_fast.models.any_network.channel_sets import ChannelSets
from oekd_fast.models.any_network.layouts import dims_of


def scale_of(call: Call) -> float | None:
    """Return the number by which an operation multiplies a tensor, None if it does no such thing."""
    if call.name not in ("mul", "mul_", "div", "div_") or len(call.args) < 2:
        return None
    number = call.args[1]
    if isinstance(number, Tensor) and number.ndim == 0 and not number.is_meta:
        number = number.item()
    if not isinstance(number, (int, float)) or number == 0:
        return None
    return 1 / number if call.name.startswith("div") else float(number)


def query_labels(sets: ChannelSets, call: Call) -> np.ndarray | None:
    """Return the labels of the channels of q in a batched product q k, None if the operation is no such product.

    None are returned (int64 [0]) if they are those of k too.
    """
    if call.name != "bmm" or len(call.operands) != 2:
        return None
    q, k = call.tensors()
    ours = sets.members([f for f in q.layout.factors if len(q.shape) - 1 in dims_of(f)])
    theirs = sets.members([f for f in k.layout.factors if len(k.shape) - 2 in dims_of(f)])
    if not len(ours) or not len(theirs):
        return None
    return ours[:0] if np.isin(ours, theirs).any() else ours
