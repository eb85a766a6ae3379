"""Published objectives of online distillation, as data.

Each objective is a configuration of one loss (`oekd_fast.ensemble_kd_loss`, whose documentation gives the formulas) and
states what else it needs: a gate, an external teacher, or a single network in place of a family.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

ObjectiveName = Literal[
    "oekd",
    "kd",
    "fitnets",
    "fsp",
    "meal",
    "lit",
    "codistillation",
    "dml",
    "one",
    "snapshot",
    "born_again",
    "independent",
]


@dataclass(frozen=True)
class LossWeights:
    """Temperature of the distillation term, and the weights of all terms of the loss.

    Args:
        temperature: T.
        ce_weight: weight alpha of each student's cross-entropy.
        kd_weight: weight gamma of the divergence between each student and its target.
        feature_weight: weight beta of the loss between feature maps.
        ensemble_ce_weight: weight of the ensemble's own cross-entropy.
        critic_weight: weight of the critics' loss.
    """

    temperature: float
    ce_weight: float
    kd_weight: float
    feature_weight: float
    ensemble_ce_weight: float = 0.0
    critic_weight: float = 0.0


# Fields of `DistillationConfig` whose default is the objective's value.
OBJECTIVE_DEFAULTS = tuple(field.name for field in fields(LossWeights))


@dataclass(frozen=True)
class Objective:
    """A published objective.

    Args:
        weights: temperature and weights as published, or ours where the entry says so.
        source: publication.
        teacher: whether it takes an external teacher: "none", "optional" or "required".
        from_others: the target of each student is the mean of the other students' predictions.
        gated: the ensemble's weights are learnt, for each image.
        alone: a single network, the pseudo teacher, is trained instead of a family.
        from_first: the target of each student but the pseudo teacher is the pseudo teacher's prediction, unless there
            is an external teacher.
        features: what the intermediate loss compares: "maps" themselves, the "flow" between neighbouring ones, "pooled"
            maps, also by critics, or maps of blocks that are "fed" with the teacher's maps.
        helpers: modules that the intermediate loss needs beside adapters, see `StudentEnsemble`.
        hints: an external teacher takes the pseudo teacher's place in the intermediate loss.
    """

    weights: LossWeights
    source: str
    teacher: Literal["none", "optional", "required"] = "none"
    from_others: bool = False
    gated: bool = False
    alone: bool = False
    from_first: bool = False
    features: Literal["maps", "flow", "pooled", "fed"] = "maps"
    helpers: Literal["none", "critics", "inlets"] = "none"
    hints: bool = False


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "oekd": Objective(
        LossWeights(2.0, 0.7, 0.15, 0.15), "Walawalkar, Shen, Savvides 2020, arXiv 2011.07449, section 3"
    ),
    # Hinton et al. give the labels a "considerably lower" weight; these values are those of Tian et al. 2020.
    "kd": Objective(
        LossWeights(4.0, 0.1, 0.9, 0.0),
        "Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2",
        teacher="required",
    ),
    # Hints at every block together with the labels, in one stage instead of two.
    "fitnets": Objective(
        LossWeights(1.0, 1.0, 0.0, 1.0), "Romero et al. 2015, arXiv 1412.6550, eq. 3", teacher="optional", hints=True
    ),
    # Flow matrices together with the labels, in one stage instead of two. The paper has no weight between them, since
    # its first stage learns the matrices alone; docs/training.md says how this one was chosen.
    "fsp": Objective(
        LossWeights(1.0, 1.0, 0.0, 1e-4),
        "Yim, Joo, Bae, Kim 2017, CVPR, eq. 2",
        teacher="optional",
        features="flow",
        hints=True,
    ),
    # The release, in its example with several maps, weights the cross-entropy of predictions by 1, those of maps by
    # 0.001 to 0.1, and critics by 1; the weights of maps and critics here are ours. The labels are learnt too.
    "meal": Objective(
        LossWeights(1.0, 1.0, 1.0, 0.05, critic_weight=0.05),
        "Shen, He, Xue 2019, arXiv 1812.02425",
        teacher="optional",
        from_first=True,
        features="pooled",
        helpers="critics",
        hints=True,
    ),
    # beta (alpha CE + (1 - alpha) KD) + (1 - beta) IR with the values of the authors' release: alpha 0.95, beta 0.75.
    "lit": Objective(
        LossWeights(6.0, 0.7125, 0.0375, 0.25),
        "Koratana, Kang, Bailis, Zaharia 2019, ICML, section 3",
        teacher="optional",
        from_first=True,
        features="fed",
        helpers="inlets",
        hints=True,
    ),
    "codistillation": Objective(
        LossWeights(1.0, 1.0, 1.0, 0.0), "Anil et al. 2018, arXiv 1804.03235, algorithm 1", from_others=True
    ),
    "dml": Objective(LossWeights(1.0, 1.0, 1.0, 0.0), "Zhang et al. 2018, arXiv 1706.00384, eq. 8", from_others=True),
    "one": Objective(
        LossWeights(3.0, 1.0, 1.0, 0.0, ensemble_ce_weight=1.0),
        "Lan, Zhu, Gong 2018, arXiv 1806.04606, eq. 8",
        gated=True,
    ),
    "snapshot": Objective(LossWeights(1.0, 1.0, 0.0, 0.0), "Huang et al. 2017, arXiv 1704.00109, eq. 2", alone=True),
    "born_again": Objective(
        LossWeights(1.0, 1.0, 1.0, 0.0), "Furlanello et al. 2018, arXiv 1805.04770, eq. 2", alone=True
    ),
    "independent": Objective(
        LossWeights(1.0, 1.0, 0.0, 0.0), "each student learns from labels alone, on one shared base"
    ),
}
assert set(OBJECTIVES) == set(get_args(ObjectiveName))
