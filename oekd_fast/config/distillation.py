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
_STRENGTHS = Bound(
    "finite numbers >= 0, one a student, not all 0",
    lambda values: all(math.isfinite(value) and value >= 0 for value in values) and any(values),
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
    """Teacher of kd (required), fitnets, fsp, meal or lit (optional): a saved student, a .pt2 file, or
    package.module:function."""
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
    critic_weight: float | None = setting(None, nonnegative(), unset="that of the objective; 0.05 for meal, else 0")
    """Weight of the critics of meal, which tell the maps of students from those of their teacher."""
    divergence: Literal["forward", "reverse", "js", "decoupled"] = "forward"
    """Divergence of the distillation term between a student's prediction and its target."""
    divergence_beta: float = setting(0.5, nonnegative())
    """Parameter beta of the divergences js, in (0, 1), and decoupled, whose non-target part it weights."""
    standardise_logits: bool = False
    """Compare standardised logits, (z - mean) / standard deviation over the classes, in the distillation term."""
    label_smoothing: float = setting(0.0, within("[0, 1]"))
    """Label smoothing of the cross-entropy."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of the classes in the cross-entropy; balanced is n / (C n_c) for n_c of n training images."""
    detach_ensemble: bool = True
    """Stop gradients at the ensemble's prediction, which is the students' target."""
    learn_from: Literal["objective", "others", "neighbours", "wider", "equal_or_wider", "all"] = "objective"
    """Students whose mean prediction is the target of student j: as the objective says; all others; students
    j - 1 and j + 1; students 1 to j - 1, or for student 1 all others; or, with learn_from_average, students 1 to j or
    all."""
    learn_from_average: bool = False
    """Learn from the moving average of the students' weights, with the decay ema_decay, in place of their current
    ones."""
    kd_strengths: tuple[float, ...] | None = setting(None, _STRENGTHS, unset="1 for all")
    """Factors of kd_weight, one a student; a student with 0 learns from the labels alone."""
    base_gradients: Literal["all", "mean", "pseudo_teacher", "without_features"] = "all"
    """Losses that train the shared base: the sum of all of all students, their mean, the pseudo teacher's only, or all
    except those on feature maps."""
    codistillation_delay: int = setting(0, at_least(0))
    """Steps between the copies of the students that codistillation learns from; 0 uses current predictions."""
    generations: int = setting(3, at_least(1))
    """Number of generations of born_again; the first learns from labels alone."""

    @property
    def family_objective(self) -> Objective:
        """The entry of `OBJECTIVES` called `objective`."""
        return OBJECTIVES[self.objective]

    @property
    def mixes_students(self) -> bool:
        """Whether targets are means of students' predictions that differ from student to student."""
        objective = self.family_objective
        return self.learn_from != "objective" or objective.from_others or self.learns_from_first

    @property
    def learns_from_first(self) -> bool:
        """Whether the pseudo teacher's prediction is the target of all other students."""
        return self.family_objective.from_first and self.teacher is None

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
            *takers, last = (key for key, other in OBJECTIVES.items() if other.teacher != "none")
            raise ValueError(
                f"teacher: expected none but with objective {', '.join(takers)} or {last}, got {self.teacher} "
                f"with {name!r}"
            )
        for option in ("teacher_mean", "teacher_std", "teacher_image_size"):
            if self.teacher is None and getattr(self, option) is not None:
                raise ValueError(f"{option}: expected none without a teacher, got {getattr(self, option)}")
        if self.divergence != "decoupled" and not 0.0 < self.divergence_beta < 1.0:
            raise ValueError(
                f"divergence_beta: expected a number in (0, 1) with divergence={self.divergence!r}, got "
                f"{self.divergence_beta:g}"
            )
        if self.codistillation_delay and name != "codistillation":
            raise ValueError(
                f"codistillation_delay: expected 0 but with objective='codistillation', got {self.codistillation_delay}"
            )
        weights = self.loss_weights
        if weights.critic_weight and objective.helpers != "critics":
            raise ValueError(f"critic_weight: expected 0 but with objective='meal', got {weights.critic_weight:g}")
        if weights.critic_weight and not weights.feature_weight:
            raise ValueError(
                f"feature_weight: expected a number > 0 with critic_weight={weights.critic_weight:g}, got 0"
            )
        if self.mixes_students and not self.detach_ensemble:
            chosen = f"learn_from={self.learn_from!r}" if self.learn_from != "objective" else f"objective={name!r}"
            raise ValueError(f"detach_ensemble: expected True with {chosen}, got False")
        self._check_targets()
        super().check()

    def _check_targets(self) -> None:
        name, learn_from = self.objective, self.learn_from
        if learn_from != "objective" and name != "oekd":
            raise ValueError(f"learn_from: expected 'objective' with objective={name!r}, got {learn_from!r}")
        if learn_from in ("equal_or_wider", "all") and not self.learn_from_average:
            raise ValueError(
                f"learn_from_average: expected True with learn_from={learn_from!r}, since a student learns nothing "
                "from its own current prediction, got False"
            )
        for option in ("learn_from_average", "kd_strengths"):
            value = getattr(self, option)
            if value and not self.mixes_students:
                raise ValueError(
                    f"{option}: expected none but with learn_from, with objective dml or codistillation, or with meal "
                    f"or lit and no teacher, got {value} with {name!r}"
                )
        if self.learn_from_average and self.codistillation_delay:
            raise ValueError(
                f"codistillation_delay: expected 0 with learn_from_average, got {self.codistillation_delay}"
            )
