"""Section of the config: what the students learn from each other or from a teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from oekd_fast.config.objectives import OBJECTIVE_DEFAULTS, OBJECTIVES, LossWeights, Objective, ObjectiveName
from oekd_fast.config.section import Bound, Section, at_least, between, finite, nonnegative, positive, setting, within

_FINITE = Bound(
    "finite numbers, one a channel", lambda values: len(values) > 0 and all(map(math.isfinite, values)), tuple
)
_POSITIVE = Bound(
    "finite numbers > 0, one a channel",
    lambda values: len(values) > 0 and all(math.isfinite(value) and value > 0 for value in values),
    tuple,
)


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Section):
    """Objective and the weights of its loss.

    Temperature and weights that are None have the objective's value; `loss_weights` resolves them.
    """

    objective: ObjectiveName = "oekd"
    """Target of the students besides the labels; oekd is the objective of the paper."""
    teacher: Path | None = setting(None, unset="no external teacher")
    """Teacher of kd (required) or fitnets (optional): a saved student, a .pt2 file, or package.module:function."""
    teacher_mean: tuple[float, ...] | None = setting(None, _FINITE, unset="what the teacher tells, or the data set's")
    """Mean of each channel that images are normalised with for the teacher, for pixels in [0, 1]."""
    teacher_std: tuple[float, ...] | None = setting(None, _POSITIVE, unset="what the teacher tells, or the data set's")
    """Standard deviation of each channel for the teacher."""
    teacher_image_size: int | None = setting(
        None, between(1, 16384, "pixels"), unset="what the teacher tells, or the images' own size"
    )
    """Side length in pixels that images are resized to for the teacher."""
    temperature: float | None = setting(None, positive(), unset="that of the objective; 2 for oekd")
    """Temperature T of the distillation term."""
    ce_weight: float | None = setting(None, finite(), unset="that of the objective; 0.7 for oekd")
    """Weight alpha of each student's cross-entropy."""
    feature_weight: float | None = setting(None, nonnegative(), unset="that of the objective; 0.15 for oekd")
    """Weight beta of the loss between feature maps of students and teacher."""
    kd_weight: float | None = setting(None, finite(), unset="that of the objective; 0.15 for oekd")
    """Weight gamma of the divergence between each student and its target."""
    ensemble_ce_weight: float | None = setting(None, finite(), unset="that of the objective; 1 for one, else 0")
    """Weight of the ensemble's own cross-entropy."""
    label_smoothing: float = setting(0.0, within("[0, 1]"))
    """Label smoothing of the cross-entropy."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of the classes in the cross-entropy; balanced is n / (C n_c) for n_c of n training images."""
    detach_ensemble: bool = True
    """Stop gradients at the ensemble's prediction, which is the students' target."""
    base_gradients: Literal["all", "pseudo_teacher"] = "all"
    """Students whose losses train the shared base: all of them, or the pseudo teacher only."""
    codistillation_delay: int = setting(0, at_least(0))
    """Steps between the copies of the students that codistillation learns from; 0 uses current predictions."""
    generations: int = setting(3, at_least(1))
    """Number of generations of born_again; the first learns from labels alone."""

    @property
    def family_objective(self) -> Objective:
        """The entry of `OBJECTIVES` called `objective`."""
        return OBJECTIVES[self.objective]

    @property
    def loss_weights(self) -> LossWeights:
        """Temperature and weights; each field that is None has the objective's value."""
        defaults, given = self.family_objective.weights, {name: getattr(self, name) for name in OBJECTIVE_DEFAULTS}
        return LossWeights(
            **{name: getattr(defaults, name) if value is None else value for name, value in given.items()}
        )

    def check(self) -> None:
        objective, name = self.family_objective, self.objective
        if objective.teacher == "required" and self.teacher is None:
            raise ValueError(
                f"teacher: expected a saved student, a .pt2 file or module:function with objective={name!r}, got None"
            )
        if objective.teacher == "none" and self.teacher is not None:
            takers = " or ".join(key for key, other in OBJECTIVES.items() if other.teacher != "none")
            raise ValueError(f"teacher: expected none but with objective {takers}, got {self.teacher} with {name!r}")
        for option in ("teacher_mean", "teacher_std", "teacher_image_size"):
            if self.teacher is None and getattr(self, option) is not None:
                raise ValueError(f"{option}: expected none without a teacher, got {getattr(self, option)}")
        if self.codistillation_delay and name != "codistillation":
            raise ValueError(
                f"codistillation_delay: expected 0 but with objective='codistillation', got {self.codistillation_delay}"
            )
        if objective.from_others and not self.detach_ensemble:
            raise ValueError(f"detach_ensemble: expected True with objective={name!r}, got False")
        super().check()
