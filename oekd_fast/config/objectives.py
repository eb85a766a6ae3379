"""What the students of a family learn from each other, or from a teacher: published objectives as data.

Each is a configuration of one loss (`oekd_fast.ensemble_kd_loss`, whose documentation gives the formulas) and says what
else it takes: a gate, copies of the students, an external teacher, one network instead of a family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

ObjectiveName = Literal[
    "oekd", "kd", "fitnets", "codistillation", "dml", "one", "snapshot", "born_again", "independent"
]


@dataclass(frozen=True)
class Objective:
    """One published objective.

    temperature, ce_weight, kd_weight, feature_weight, ensemble_ce_weight: as published.
    source: where from.
    teacher: whether it takes an external teacher: "none", "optional" or "required".
    from_others: every student's target is the mean of the others' predictions.
    gated: the ensemble's weights are learnt, for each image.
    alone: one network, the pseudo teacher, and no family.
    """

    temperature: float
    ce_weight: float
    kd_weight: float
    feature_weight: float
    source: str
    ensemble_ce_weight: float = 0.0
    teacher: Literal["none", "optional", "required"] = "none"
    from_others: bool = False
    gated: bool = False
    alone: bool = False


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "oekd": Objective(2.0, 0.7, 0.15, 0.15, "Walawalkar, Shen, Savvides 2020, arXiv 2011.07449, section 3"),
    # The labels "considerably lower"; T and weights are those that later work settled on (Tian et al. 2020).
    "kd": Objective(4.0, 0.1, 0.9, 0.0, "Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2", teacher="required"),
    # Hints at every block beside the labels, in one stage instead of two.
    "fitnets": Objective(1.0, 1.0, 0.0, 1.0, "Romero et al. 2015, arXiv 1412.6550, eq. 3", teacher="optional"),
    "codistillation": Objective(
        1.0, 1.0, 1.0, 0.0, "Anil et al. 2018, arXiv 1804.03235, algorithm 1", from_others=True
    ),
    "dml": Objective(1.0, 1.0, 1.0, 0.0, "Zhang et al. 2018, arXiv 1706.00384, eq. 8", from_others=True),
    "one": Objective(
        3.0, 1.0, 1.0, 0.0, "Lan, Zhu, Gong 2018, arXiv 1806.04606, eq. 8", ensemble_ce_weight=1.0, gated=True
    ),
    "snapshot": Objective(1.0, 1.0, 0.0, 0.0, "Huang et al. 2017, arXiv 1704.00109, eq. 2", alone=True),
    "born_again": Objective(1.0, 1.0, 1.0, 0.0, "Furlanello et al. 2018, arXiv 1805.04770, eq. 2", alone=True),
    "independent": Objective(1.0, 1.0, 0.0, 0.0, "each student from labels alone, on one shared base"),
}
assert set(OBJECTIVES) == set(get_args(ObjectiveName))


def others(students: int, device: torch.device | None = None) -> Tensor:
    """W of a mean of the others: 1 / (S - 1), and 0 on the diagonal; [S, S], made on the device: no host waits."""
    return (1.0 - torch.eye(students, device=device)) / (students - 1)
