"""A stand-in for CUDA graphs on the CPU: records the operators of a call and replays them without its Python code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from oekd_fast.training.graph_capture import State


class Tape(TorchDispatchMode):
    """Runs every operator and records it with its inputs and outputs.

    Args:
        fault: raised instead of the first operator whose name contains `at`.
    """

    def __init__(self, fault: Exception | None = None, at: str = "") -> None:
        super().__init__()
        self.lines: list[tuple] = []
        self._fault, self._at = fault, at

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self._fault is not None and self._at in str(func):
            raise self._fault
        made = func(*args, **(kwargs or {}))
        self.lines.append((func, args, kwargs or {}, made))
        return made

    def play(self) -> None:
        """Run the same operators on the same memory; outputs are written where the recorded call put them."""
        with torch.no_grad():
            for func, args, kwargs, made in self.lines:
                given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
                for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in given:
                        old.copy_(new)


class TapeRecorder:
    """A `Recorder` for CPU tensors.

    Attributes:
        events: calls of its methods and of what it recorded, in order.
        marks, waits: number of marks made and waited for.

    Args:
        state: returns the tensors that the captured calls change. Recording runs a call, and restores them afterwards.
        fault: raised in a recording at the first operator whose name contains `at`.
    """

    def __init__(self, state: Callable[[], State], fault: Exception | None = None, at: str = "") -> None:
        self._state, self._fault, self._at = state, fault, at
        self.events: list[str] = []
        self.marks = self.waits = 0

    def warm_up(self, call: Callable[[], None], times: int) -> None:
        self.events.append("warm-up")
        for _ in range(times):
            call()

    def record(self, call: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        before = {name: tensor.detach().clone() for name, tensor in self._state().items()}
        random = [generator.get_state() for generator in generators]
        self.events.append("record")
        try:
            with Tape(self._fault, self._at) as tape:
                call()
        finally:
            with torch.no_grad():
                for name, tensor in self._state().items():
                    tensor.copy_(before[name])
            for generator, drawn in zip(generators, random, strict=True):
                generator.set_state(drawn)

        def replay() -> None:
            self.events.append("replay")
            tape.play()

        return replay

    def needed_bytes(self) -> int:
        return 3_000_000_000

    def free_bytes(self) -> int:
        return 1_250_000_000

    def mark(self) -> Callable[[], None]:
        self.marks += 1
        return self._wait

    def _wait(self) -> None:
        self.waits += 1
