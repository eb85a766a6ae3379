"""An operation of a network in the record of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oekd_fast.models.any_network.calls import Outcome
from oekd_fast.models.any_network.layouts import Shape


@dataclass(frozen=True)
class Step:
    """An operation that ran.

    Args:
        name: such as "convolution".
        module: name of the innermost module that ran it; "" for the network itself.
        where: module, operation and line, for errors.
        outcome: what it does to channels.
        shapes: of its outputs.
        scale: the number by which it multiplies a tensor, None if it does no such thing.
        queries: labels of the channels of q, of a product of q and k in attention.
    """

    name: str
    module: str
    where: str
    outcome: Outcome
    shapes: tuple[Shape, ...]
    scale: float | None = None
    queries: np.ndarray | None = None
