"""Random numbers of students that run side by side on the CPU: the same as if they ran one after the other.

All threads share torch's default CPU generator, so students that draw from it must do so in their own order. Which
ones draw is learnt from a first call that runs all in turn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

Branch = Callable[[Any], Any]
# (branches, inputs, students to run one after the other) -> anything
Forward = Callable[[Sequence[Branch], Sequence[Any], Sequence[int]], Any]


class Draws:
    """Who draws, for each mode of the branches: the train or eval mode of all their modules, and the grad mode.

    A student that begins to draw later, in a mode that is known, is noticed when the call is over, unless one that is
    known to draw was running: a warning says so once, and the next call learns again.
    """

    def __init__(self) -> None:
        self._drawing: dict[Hashable, tuple[int, ...]] = {}
        self._warned = False

    def run(self, forward: Forward, branches: Sequence[Branch], inputs: Sequence[Any]) -> Any:
        """Call `forward` so that draws come in the students' order, and return what it returns."""
        mode = _mode(branches)
        known = mode in self._drawing
        serial = self._drawing[mode] if known else range(len(branches))
        watched = {j: _Watched(branches[j]) for j in serial}
        before = _generator_state()
        result = forward([watched.get(j, branch) for j, branch in enumerate(branches)], inputs, list(serial))
        states = [before, *(state for watch in watched.values() for state in watch.states), _generator_state()]
        # Between those that draw, in their order, nobody may have drawn.
        if known and any(a != b for a, b in list(pairwise(states))[::2]):
            del self._drawing[mode]
            self._warn()
        elif not known:
            self._drawing[mode] = tuple(j for j, watch in watched.items() if watch.states[0] != watch.states[1])
        return result

    def _warn(self) -> None:
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            "torch's default CPU generator was used during a forward pass by other than the students that drew from "
            "it before, so numbers may differ from those of one student after the other; who draws is learnt again "
            "at the next call",
            stacklevel=4,
        )


class _Watched:
    """A branch, and the generator's state before and after it."""

    def __init__(self, branch: Branch) -> None:
        self._branch = branch
        self.states: list[bytes] = []

    def __call__(self, value: Any) -> Any:
        self.states.append(_generator_state())
        try:
            return self._branch(value)
        finally:
            self.states.append(_generator_state())


def _mode(branches: Sequence[Branch]) -> Hashable:
    modules = (branch.modules() if isinstance(branch, nn.Module) else (branch,) for branch in branches)
    flags = tuple(tuple((type(m), getattr(m, "training", None)) for m in each) for each in modules)
    return flags, torch.is_grad_enabled()


def _generator_state() -> bytes:
    # As bytes: a comparison of tensors would itself be seen by a dispatch mode.
    return torch.get_rng_state().numpy().tobytes()
