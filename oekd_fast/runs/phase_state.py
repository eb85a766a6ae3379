"""Progress of a phase, as its checkpoints store it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class PhaseState:
    """Progress of a phase between two steps, beside the state of its engine and of the random generators.

    epoch: finished epochs.
    batch: steps done in the current epoch.
    order: order of the training images in the current epoch, int64 [N] on the CPU.
    seconds: training time of the finished epochs, without evaluation.
    epoch_seconds: training time of the current epoch.
    best: `epoch`, `score` and `model` (a state dict) of the selected epoch; empty before the first epoch has finished.
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

    def is_best(self, score: list[float]) -> bool:
        """Return whether an epoch with `score` is better than the selected one; earlier epochs win ties."""
        return not self.best or score > self.best["score"]
