"""Input and result of one phase of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.family.teacher import Teacher
from oekd_fast.models import Architecture
from oekd_fast.training.metrics import EpochMetrics


@dataclass(frozen=True)
class PhaseTask:
    """Description of what a phase trains.

    name: name of the phase, in checkpoints and metrics.
    members: indices of the students that train, counted from 0. A single member has no ensemble to learn from.
    from_labels: True trains by cross-entropy alone, as a baseline; False by the objective of the config.
    epochs: None trains for the epochs of the config.
    teacher: external teacher, which the students learn from beside or instead of each other.
    start: family whose weights the base and the students start with; None starts from the model's initial weights.
    architecture: network to train; None stands for the registered one that the config names.
    """

    name: str
    members: tuple[int, ...]
    from_labels: bool = False
    epochs: int | None = None
    teacher: Teacher | None = None
    start: StudentEnsemble | None = None
    architecture: Architecture | None = None


@dataclass(frozen=True)
class PhaseResult:
    """Outcome of a finished phase.

    ensemble: the family with the weights of the selected epoch.
    selected_epoch: counted from 1.
    history: one line of metrics.jsonl an epoch.
    test, last_test: results on the test split with the weights of the selected and of the last epoch.
    seconds: training time without evaluation.
    images_per_second: mean over the training time.
    snapshots: weights at the end of each cycle of the learning rate, for the objective "snapshot".
    flipped_test: `test` by the mean logits of each image and its mirror image, with `config.test_flips`.
    stopped_early: whether the phase ended before its last epoch, because the validation accuracy no longer rose.
    """

    ensemble: StudentEnsemble
    selected_epoch: int
    history: list[dict[str, Any]]
    test: EpochMetrics
    last_test: EpochMetrics
    seconds: float
    images_per_second: float
    snapshots: tuple[dict[str, Any], ...] = ()
    stopped_early: bool = False
    flipped_test: EpochMetrics | None = None
