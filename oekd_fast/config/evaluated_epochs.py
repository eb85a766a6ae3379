"""Which epochs of a phase end with an evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EvaluatedEpochs:
    """The epochs of a phase after which the validation images are evaluated: every n-th one, and the last one.

    ``epoch in evaluated`` says whether it is one of them, counted from 1.

    Args:
        epochs: epochs of the phase.
        every: epochs from one evaluation to the next.
    """

    epochs: int
    every: int = 1

    def __contains__(self, epoch: int) -> bool:
        return epoch % self.every == 0 or epoch == self.epochs

    def after(self, done: int) -> int:
        """Return the number of evaluations that are left after `done` epochs."""
        if done >= self.epochs:
            return 0
        return -(-self.epochs // self.every) - done // self.every
