"""The intermediate loss of each objective."""

from __future__ import annotations

from functools import partial

from oekd_fast.config.distillation import DistillationConfig
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.losses.adversarial import adversarial_loss
from oekd_fast.losses.comparison import AutogradComparison, Comparison, MapComparison
from oekd_fast.losses.flow import flow_loss
from oekd_fast.models.functional import Branch


def comparison_of(config: DistillationConfig, ensemble: StudentEnsemble) -> Comparison:
    """Return the loss between the feature maps of the students of `ensemble` and those of their teacher.

    Raises:
        ValueError: the network of `ensemble` has too few blocks for it, or blocks that cannot be fed with maps.
    """
    features, weights = config.family_objective.features, config.loss_weights
    if features == "flow":
        if len(ensemble.adapters) == 1:
            raise ValueError(
                f"objective: expected a network of at least two blocks with {config.objective!r}, which compares pairs "
                f"of neighbouring blocks, got one block in {ensemble.architecture.name}"
            )
        return AutogradComparison(flow_loss)
    if features == "fed":
        for branch in ensemble.branches:
            if not (isinstance(branch, Branch) and branch.passes_maps):
                raise ValueError(
                    f"objective: expected a network whose blocks receive maps [B, C, H, W] with {config.objective!r}, "
                    f"which feeds them with its teacher's maps, got others in {ensemble.architecture.name}"
                )
    if features == "pooled" and weights.feature_weight:
        # The step multiplies the whole loss by the scheduled weight of the maps.
        ratio = weights.critic_weight / weights.feature_weight
        return AutogradComparison(partial(adversarial_loss, critic_weight=ratio))
    return MapComparison()
