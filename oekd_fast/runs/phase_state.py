"""Progress of a phase, as its checkpoints store it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


def mean_accuracy(accuracies: Sequence[float]) -> float:
    """Return the mean accuracy of the students, which selects the epoch."""
    return sum(accuracies) / len(accuracies)


@dataclass
class PhaseState:
    """Progress of a phase between two steps, beside the state of its engine and of the random generators.

    epoch: finished epochs.
    batch: steps done in the current epoch.
    order: order of the training images in the current epoch, int64 [N] on the CPU.
    seconds: training time of the finished epochs, without evaluation.
    epoch_seconds: training time of the current epoch.
    best: `epoch`, `score` and `model` (a state dict) of the selected epoch; empty before the first evaluation.
    snapshots: state dicts at the end of each cycle of the learning rate.
    history: one line of metrics.jsonl for each finished epoch.
    """

    epoch: int = 0
    batch: int = 0
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return the fields by name; a checkpoint holds them beside other keys."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> PhaseState:
        """Read the fields from a checkpoint; early checkpoints have no `snapshots`."""
        state = {"snapshots": [], **state, "order": state["order"].cpu()}
        return cls(**{f.name: state[f.name] for f in fields(cls)})

    @property
    def stale_epochs(self) -> int:
        """Number of epochs from the last one with a higher mean validation accuracy than all before it to the last
        one that was evaluated."""
        evaluated = [line for line in self.history if "validation" in line]
        means = [mean_accuracy(line["validation"]["accuracy"]) for line in evaluated]
        return evaluated[-1]["epoch"] - evaluated[means.index(max(means))]["epoch"] if means else 0

    def is_best(self, score: list[float]) -> bool:
        """Return whether an epoch with `score` is better than the selected one; earlier epochs win ties."""
        return not self.best or score > self.best["score"]
