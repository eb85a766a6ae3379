"""Random numbers of students that run side by side on the CPU, equal to those of a sequential run.

All threads share torch's default CPU generator, so students that draw from it have to do so in the order of their
indices. The first call runs all students sequentially to learn which of them draw.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from oekd_fast.native import cpu_generator_state

Branch = Callable[[Any], Any]
# (branches, inputs, indices of the students to run sequentially) -> result
Forward = Callable[[Sequence[Branch], Sequence[Any], Sequence[int]], Any]


class RandomDrawOrder:
    """Keeps the order in which students draw random numbers.

    The students that draw are recorded for each mode: the train or eval mode of all modules, and the grad mode. If
    another student starts to draw in a recorded mode, this is detected at the end of the call, unless it drew while
    a recorded student was running. A warning is then issued once, and the next call learns the mode again.
    """

    def __init__(self) -> None:
        self._drawing: dict[Hashable, tuple[int, ...]] = {}
        self._warned = False

    def run(self, forward: Forward, branches: Sequence[Branch], inputs: Sequence[Any]) -> Any:
        """Call `forward` with the students to run sequentially, and return its result."""
        mode = _mode(branches)
        drawing = self._drawing.get(mode)  # read once, because calls may overlap
        known = drawing is not None
        serial = drawing if known else range(len(branches))
        watched = {j: _Watched(branches[j]) for j in serial}
        before = cpu_generator_state()
        result = forward([watched.get(j, branch) for j, branch in enumerate(branches)], inputs, list(serial))
        states = [before, *(state for watch in watched.values() for state in watch.states), cpu_generator_state()]
        # The generator must not have changed outside the sequential students: compare the state after each one with
        # the state before the next.
        if known and any(a != b for a, b in list(pairwise(states))[::2]):
            self._drawing.pop(mode, None)
            self._warn()
        elif not known:
            self._drawing[mode] = tuple(j for j, watch in watched.items() if watch.states[0] != watch.states[1])
        return result

    def _warn(self) -> None:
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            "torch's default CPU generator was used during a parallel forward pass by code other than the students "
            "known to draw random numbers, so the numbers may differ from those of a sequential run; the next call "
            "runs sequentially to learn which students draw",
            stacklevel=5,
        )


class _Watched:
    """A branch that records the generator's state before and after its call."""

    def __init__(self, branch: Branch) -> None:
        self._branch = branch
        self.states: list[bytes] = []

    def __call__(self, value: Any) -> Any:
        self.states.append(cpu_generator_state())
        try:
            return self._branch(value)
        finally:
            self.states.append(cpu_generator_state())


def _mode(branches: Sequence[Branch]) -> Hashable:
    modules = (branch.modules() if isinstance(branch, nn.Module) else (branch,) for branch in branches)
    flags = tuple(tuple((type(m), getattr(m, "training", None)) for m in each) for each in modules)
    return flags, torch.is_grad_enabled()
