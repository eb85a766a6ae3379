"""A family and its losses as one module, for a training loop that is not the package's own."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.layers.scripting import Unscriptable
from oekd_fast.losses.modules import EnsembleKDLoss, FeatureKDLoss
from oekd_fast.losses.reference import EnsembleKDOutput


class EnsembleLossOutput(NamedTuple):
    """Loss of a family for one batch, on the device of the images.

    Args:
        loss: scalar, differentiable: the loss on the logits, plus `feature_weight` times `feature` if there is one.
        statistics: what `ensemble_kd_loss` returns for the logits, all detached.
        feature: scalar, the loss on feature maps before it is weighted, detached; None for a family without adapters.
    """

    loss: Tensor
    statistics: EnsembleKDOutput
    feature: Tensor | None


class EnsembleWithLoss(Unscriptable, nn.Module):
    """A family together with its losses: images and labels in, one scalar loss out.

    Every parameter is used in `forward` and has a gradient after `loss.backward()`, those of adapters and gate
    included. ``torch.nn.parallel.DistributedDataParallel`` therefore takes this module without
    ``find_unused_parameters``.

    Args:
        ensemble: family that learns from labels and from its own students, on any device.
        loss: loss on the logits; None stands for ``EnsembleKDLoss()``. A gate of the family gives its
            `ensemble_weights`.
        feature_weight: weight of the loss on feature maps, > 0 for a family with adapters and 0 for one without. The
            attribute of this name may be changed between steps.

    Raises:
        ValueError: `feature_weight` is not such a number, the family was built with `hint_channels` or `helpers`, or it
            has a gate that `loss` gives no gradient.
    """

    def __init__(
        self, ensemble: StudentEnsemble, loss: EnsembleKDLoss | None = None, *, feature_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.loss = EnsembleKDLoss() if loss is None else loss
        self.feature_loss = FeatureKDLoss()
        self.feature_weight = feature_weight
        _check_feature_weight(feature_weight, ensemble)
        options = self.loss.options
        if ensemble.gate is not None and options.detach_ensemble and not options.ensemble_learns:
            raise ValueError(
                "loss: expected ensemble_ce_weight other than 0, or detach_ensemble=False, for a family with a gate, "
                "which has no gradient otherwise; got neither"
            )

    def forward(self, images: Tensor, labels: Tensor) -> EnsembleLossOutput:
        """Return the loss of a batch and its statistics.

        Args:
            images: floating-point [B, in_channels, H, W].
            labels: int64 [B].
        """
        output, gate = self.ensemble.forward_gated(images)
        statistics = self.loss.output(output.logits, labels, ensemble_weights=gate)
        detached = statistics._replace(loss=statistics.loss.detach())
        if not self.ensemble.adapters:
            return EnsembleLossOutput(statistics.loss, detached, None)
        feature = self.feature_loss(output.features, self.ensemble.adapters)
        return EnsembleLossOutput(statistics.loss + self.feature_weight * feature, detached, feature.detach())


def _check_feature_weight(weight: float, ensemble: StudentEnsemble) -> None:
    if ensemble.hinted:
        raise ValueError(
            "ensemble: expected a family that learns from its own students, got one built with hint_channels for an "
            "external teacher"
        )
    if ensemble.helpers:
        raise ValueError("ensemble: expected a family without helpers, which no loss of this module uses, got some")
    if not math.isfinite(weight) or weight < 0:
        raise ValueError(f"feature_weight: expected a finite number >= 0, got {weight}")
    if ensemble.adapters and weight == 0:
        raise ValueError(
            "feature_weight: expected a number > 0 for a family with adapters, got 0; build_ensemble(..., "
            "adapters=False) builds a family without them"
        )
    if not ensemble.adapters and weight > 0:
        raise ValueError(f"feature_weight: expected 0 for a family without adapters, got {weight:g}")
