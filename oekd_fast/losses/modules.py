"""The losses as ``torch.nn`` modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from oekd_fast.losses.calls import KDOptions
from oekd_fast.losses.ensemble_kd import loss_of
from oekd_fast.losses.feature_kd import feature_kd_loss
from oekd_fast.losses.reference import EnsembleKDOutput


class EnsembleKDLoss(nn.Module):
    """:func:`oekd_fast.ensemble_kd_loss` with fixed options, as a drop-in criterion.

    Args:
        backend, validate: arguments of the function.
        **options: fields of :class:`oekd_fast.losses.calls.KDOptions`. Tensors among them are neither saved nor moved
            with the module, and a parameter among them is not one of the module's parameters.
    """

    def __init__(self, *, backend: str = "auto", validate: bool = False, **options) -> None:
        super().__init__()
        self.options = KDOptions(**options)
        self.backend, self.validate = backend, validate

    def forward(
        self,
        logits: Any,
        target: Tensor | None,
        num_items_in_batch: float | Tensor | None = None,
        *,
        ensemble_weights: Tensor | None = None,
        teacher_logits: Sequence[Tensor] | Tensor | None = None,
    ) -> Tensor:
        """Return the loss.

        Args:
            logits: tensors, or an output of a network that holds them, as the function takes them.
            target: class indices or probabilities.
            num_items_in_batch: `num_items` of the function, under the name that Hugging Face's Trainer gives it, so
                that the module can be passed as ``compute_loss_func``.
            ensemble_weights: [S], or a gate [B, S].
            teacher_logits: [B, C], or K teachers as the function takes them.
        """
        return self.output(
            logits, target, num_items_in_batch, ensemble_weights=ensemble_weights, teacher_logits=teacher_logits
        ).loss

    def output(
        self,
        logits: Any,
        target: Tensor | None,
        num_items_in_batch: float | Tensor | None = None,
        *,
        ensemble_weights: Tensor | None = None,
        teacher_logits: Sequence[Tensor] | Tensor | None = None,
    ) -> EnsembleKDOutput:
        """Return the loss together with its statistics; the arguments are those of `forward`."""
        beside = ensemble_weights, teacher_logits, num_items_in_batch, self.backend, self.validate
        return loss_of(logits, target, tuple(vars(self.options).values()), beside, self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in vars(self.options).items())


class FeatureKDLoss(nn.Module):
    """:func:`oekd_fast.feature_kd_loss` over a family's features and adapters."""

    def __init__(self, *, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend

    def forward(self, features: Sequence[Sequence[Tensor]], adapters: Sequence[Sequence[nn.Conv2d]]) -> Tensor:
        """Scalar loss.

        Args:
            features: S x blocks maps, the pseudo teacher's first, as in ``EnsembleOutput.features``.
            adapters: blocks x (S - 1) 1x1 convolutions with bias, as ``StudentEnsemble.adapters``.
        """
        teacher, *students = features
        return feature_kd_loss(
            list(zip(*students, strict=True)) if students else [()] * len(teacher),
            teacher,
            [[adapter.weight for adapter in block] for block in adapters],
            [[adapter.bias for adapter in block] for block in adapters],
            backend=self.backend,
        )
