"""The arms of the comparison: options of a training, and what they are expected to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oekd_fast.config.train_config import TrainConfig

RAMP = 0.2  # share of the epochs over which the weight of the distillation term rises


@dataclass(frozen=True)
class Arm:
    """A training that is compared with others.

    Args:
        hypothesis: what it is expected to do, written before the first run.
        fields: options that differ from `COMMON`.
        ramped: whether the weight of the distillation term rises in the first fifth of the epochs.
        alone: whether each student is trained alone as well, with the same options.
        taught: whether the first student of `independent`, trained alone before, is the teacher.
    """

    hypothesis: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    ramped: bool = True
    alone: bool = False
    taught: bool = False


COMMON = {
    "model": "resnet20",
    "num_students": 5,
    "schedule": "cosine",
    "learning_rate": 0.1,
    "batch_size": 128,
    "weight_decay": 5e-4,
    "ce_weight": 1.0,
    "feature_weight": 0.0,
    "evaluate_every": 5,
    "latency": "off",
}
# Student 1 learns little, from weaker students, and student 5, which underfits, half as much as the others.
_STRENGTHS = (0.3, 1.0, 1.0, 1.0, 0.5)

ARMS: dict[str, Arm] = {
    "independent": Arm(
        "Sharing the base changes no student by more than 0.3 points.", {"objective": "independent"}, False, True
    ),
    "independent_mean_base": Arm(
        "With the mean of the students' gradients in the base, student 1 keeps half of what it gains with their sum.",
        {"objective": "independent", "base_gradients": "mean"}, False,
    ),
    "independent_wd1e-4": Arm(
        "A weight decay of 1e-4 is worse than 5e-4 for students 1 to 3, and better for student 5.",
        {"objective": "independent", "weight_decay": 1e-4}, False, True,
    ),
    "independent_wd1e-3": Arm(
        "A weight decay of 1e-3 is worse than 5e-4 for students 3 to 5.",
        {"objective": "independent", "weight_decay": 1e-3}, False, True,
    ),
    "independent_smoothing": Arm(
        "Label smoothing of 0.1 changes no student by more than 0.5 points.",
        {"objective": "independent", "label_smoothing": 0.1}, False, True,
    ),
    "paper": Arm(
        "The paper's weights leave student 1 as it is alone and gain up to 1 point for student 5.",
        {"ce_weight": 0.7, "kd_weight": 0.15, "feature_weight": 0.15, "temperature": 2.0}, False,
    ),
    "feature": Arm(
        "The term of feature maps alone costs students 1 to 3 two points, through the shared base.",
        {"kd_weight": 0.0, "feature_weight": 0.15}, False,
    ),
    "feature_small": Arm(
        "A tenth of the weight of the term of feature maps costs nothing.",
        {"kd_weight": 0.0, "feature_weight": 0.015}, False,
    ),
    "paper_own_base": Arm(
        "The paper's weights with a base that learns from student 1 alone cost student 1 nothing.",
        {"ce_weight": 0.7, "kd_weight": 0.15, "feature_weight": 0.15, "temperature": 2.0,
         "base_gradients": "pseudo_teacher"}, False,
    ),
    "paper_without_features_in_base": Arm(
        "As paper, with a base that the term of feature maps does not train: student 1 loses under half a point.",
        {"ce_weight": 0.7, "kd_weight": 0.15, "feature_weight": 0.15, "temperature": 2.0,
         "base_gradients": "without_features"}, False,
    ),
    "one": Arm(
        "A gate that learns from the labels gains 0.5 to 1.3 points for student 1 and up to 1.5 for student 5.",
        {"objective": "one"},
    ),
    "one_mean_base": Arm(
        "As one, with the mean of the students' gradients in the base, not their sum: within half a point of one.",
        {"objective": "one", "base_gradients": "mean"},
    ),
    "one_own_base": Arm(
        "As one, with a base that learns from student 1 alone: student 1 loses the 1.5 points of a shared base.",
        {"objective": "one", "base_gradients": "pseudo_teacher"},
    ),
    "one_strong": Arm(
        "As one, with twice the weight at temperature 4: up to half a point more for students 2 to 5, less for 1.",
        {"objective": "one", "kd_weight": 2.0, "temperature": 4.0},
    ),
    "one_wd1e-4": Arm(
        "As one, with a weight decay of 1e-4: a point less for students 1 and 2.",
        {"objective": "one", "weight_decay": 1e-4},
    ),
    "one_mixup": Arm(
        "As one, with mixup: up to half a point more for student 1 and a point less for student 5, which underfits.",
        {"objective": "one", "mixup": 0.2},
    ),
    "mean_logits": Arm(
        "The mean of all logits as target, at the weight of other methods, gains up to 1 point for student 1.",
        {"kd_weight": 1.0, "temperature": 3.0},
    ),
    "average": Arm(
        "Averaged copies of equal and wider students teach: 0.3 to 1.2 points for student 1, 0.5 to 1.5 for student 5.",
        {"kd_weight": 1.0, "temperature": 3.0, "learn_from": "equal_or_wider", "learn_from_average": True,
         "ema_decay": 0.99},
    ),
    "average_all": Arm(
        "The mean of averaged copies of all students teaches: it is better than each of them during the whole "
        "training, and gains 1 to 2 points for student 1 and 3 to 5 for the others.",
        {"kd_weight": 1.0, "temperature": 3.0, "learn_from": "all", "learn_from_average": True, "ema_decay": 0.99},
    ),
    "neighbours": Arm(
        "The next wider and the next narrower student teach, so that student 1 learns from one that is as good and "
        "fits the training images less: 0.5 to 1.5 points for student 1, 1 to 3 for the others.",
        {"kd_weight": 1.0, "temperature": 3.0, "learn_from": "neighbours"},
    ),
    "wider": Arm(
        "Wider students teach, and all others teach student 1 a little: 0.3 to 1 point for student 1, up to 2 for 5.",
        {"kd_weight": 1.0, "temperature": 3.0, "learn_from": "wider", "kd_strengths": _STRENGTHS},
    ),
    "wider_untaught": Arm(
        "As wider, with student 1 untaught: student 1 as in independent, the others as in wider.",
        {"kd_weight": 1.0, "temperature": 3.0, "learn_from": "wider", "kd_strengths": (0.0, *_STRENGTHS[1:])},
    ),
    "wider_standardised": Arm(
        "Standardised logits with the weight and temperature of their release gain 0.3 to 0.8 points over wider.",
        {"kd_weight": 9.0, "temperature": 2.0, "learn_from": "wider", "kd_strengths": _STRENGTHS,
         "standardise_logits": True},
    ),
    "wider_decoupled": Arm(
        "Target and non-target classes compared apart, as in their release, gain 0.3 to 0.8 points over wider.",
        {"kd_weight": 1.0, "temperature": 4.0, "learn_from": "wider", "kd_strengths": _STRENGTHS,
         "divergence": "decoupled", "divergence_beta": 2.0},
    ),
    "dml": Arm(
        "Mutual learning costs or gains half a point for student 1 and gains up to 2 for student 5.",
        {"objective": "dml", "temperature": 2.0},
    ),
    "codistillation": Arm(
        "The mean prediction of the others as target is within half a point of mean_logits.",
        {"objective": "codistillation", "kd_weight": 1.0, "temperature": 3.0},
    ),
    "kd": Arm(
        "The first student alone as a fixed teacher gains 1 to 2 points for students 2 to 5 and up to 1 for student 1.",
        {"objective": "kd", "ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0}, False, taught=True,
    ),
    "fsp": Arm(
        "Flow matrices between blocks change no student by more than half a point.",
        {"objective": "fsp", "feature_weight": 1e-4}, False,
    ),
    "lit": Arm(
        "Blocks fed with student 1's maps learn half a point less than alone; student 1 is as in independent.",
        {"objective": "lit", "ce_weight": 0.7125, "kd_weight": 0.0375, "feature_weight": 0.25, "temperature": 6.0},
        False,
    ),
    "meal": Arm(
        "The prediction of student 1 gains up to 1 point for students 2 to 5, and the critics take it away again.",
        {"objective": "meal", "feature_weight": 0.05}, False,
    ),
    "average_alone": Arm(
        "Averaged weights alone gain less than half a point, so that they do not explain the gain of average.",
        {"objective": "independent", "ema_decay": 0.99}, False, True,
    ),
    "short_one_cycle": Arm(
        "As one, with a rate that rises for 30 % of the training: up to half a point more in 15 epochs.",
        {"objective": "one", "schedule": "one_cycle"}, alone=True,
    ),
    "short_large_batch": Arm(
        "As one, with twice the batch and twice the rate: the same epochs in the same time, and a point less.",
        {"objective": "one", "batch_size": 256, "learning_rate": 0.2}, alone=True,
    ),
    "short_growing": Arm(
        "As one, with images that grow from half their side: a point less, in 55 % of the time.",
        {"objective": "one", "start_size": 0.5}, alone=True,
    ),
    "short_alternating": Arm(
        "As one, with flips that alternate: up to half a point more.",
        {"objective": "one", "alternate_flips": True}, alone=True,
    ),
    "short_average": Arm(
        "As one, with averaged weights: less than half a point more, since the rate ends at 0.",
        {"objective": "one", "ema_decay": 0.99}, alone=True,
    ),
    "short_hardest": Arm(
        "As one, on the half of each batch that is hardest for student 5, in 40 % of the epochs: half a point less, in "
        "83 % of the time.",
        {"objective": "one", "keep_hardest": 0.5}, alone=True,
    ),
}  # fmt: skip


def config_of(arm: Arm, dataset: Path, epochs: int, **others: Any) -> TrainConfig:
    """Return the config of a run of `arm` on the subset in `dataset`; `others` are fields of the run."""
    ramp = {"kd_schedule": "sigmoid", "ramp_epochs": RAMP * epochs} if arm.ramped else {}
    fields = {**COMMON, **arm.fields, **ramp, **others}
    return TrainConfig(dataset=str(dataset), epochs=epochs, **fields)
