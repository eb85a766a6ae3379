"""Section of the config: the length of the training, and how rates, loss weights and images change during it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from oekd_fast.config.section import Bound, Section, at_least, nonnegative, positive, setting, within

Ramp = Literal["constant", "linear", "cosine", "sigmoid"]

_SHARES = Bound("shares of the training in (0, 1)", lambda shares: all(0 < share < 1 for share in shares), tuple)
_SPAN = Bound(
    "two ascending shares of the training in [0, 1]", lambda span: len(span) == 2 and 0 <= span[0] < span[1] <= 1, tuple
)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Section):
    """Epochs, and the course of learning rate, temperature, loss weights and of what the steps train on.

    The ramps of ce_weight are skipped where labels are all there is to learn from: in baselines, in pre-training and in
    the first generation of born_again.
    """

    epochs: int = setting(40, at_least(1))
    """Passes over the training split."""
    evaluate_every: int = setting(1, at_least(1))
    """Epochs between evaluations of the validation images; the last epoch always has one."""
    patience: int | None = setting(None, at_least(1), unset="no early stopping")
    """End a training after this many epochs without a higher mean validation accuracy of its students, at an
    evaluation."""
    schedule: Literal["multistep", "cosine", "one_cycle", "cyclic", "exponential"] = "multistep"
    """Course of the learning rate; cyclic is for objective snapshot only."""
    warmup_epochs: float = setting(1.0, nonnegative())
    """Epochs in which the learning rate rises linearly from 0; one_cycle rises in its own way."""
    rise: float = setting(0.3, within("(0, 1)"))
    """Share of the training in which the learning rate of one_cycle rises to its peak."""
    milestones: tuple[float, ...] = setting((0.5, 0.75), _SHARES)
    """Shares of the training after which multistep multiplies the rate by --decay."""
    decay: float = setting(0.1, nonnegative())
    """Factor of the learning rate in multistep and exponential."""
    decay_epochs: float = setting(3.0, positive())
    """Epochs after which exponential multiplies the rate by --decay."""
    snapshots: int = setting(5, at_least(1))
    """Cycles of cyclic; each ends with a snapshot of the network."""
    pretrain_epochs: int = setting(0, at_least(0))
    """Epochs in which the base and the pseudo teacher train alone before the family starts."""
    temperature_schedule: Ramp = "constant"
    """Course of the temperature from --temperature-start to --temperature."""
    temperature_start: float = setting(1.0, positive())
    """Temperature of the first step unless --temperature-schedule is constant."""
    ce_schedule: Ramp = "constant"
    """Course of the cross-entropy's weight from 0 to --ce-weight."""
    kd_schedule: Ramp = "constant"
    """Course of the distillation's weight from 0 to --kd-weight; sigmoid is the ramp of ONE."""
    feature_schedule: Ramp = "constant"
    """Course of the feature loss's weight from 0 to --feature-weight."""
    ramp_epochs: float = setting(80.0, nonnegative())
    """Epochs that the four schedules above take to reach their final value."""
    start_size: float | None = setting(None, within("(0, 1)"), unset="full size in all epochs")
    """Side of the training images in the first epochs, as a share of their full side."""
    growth: tuple[float, float] = setting((0.5, 0.8), _SPAN)
    """Shares of the training between which the side of the training images grows from --start-size to the full side."""
    keep_hardest: float | None = setting(None, within("(0, 1)"), unset="whole batches")
    """Share of each batch that is trained on: the images with the largest cross-entropy of the last student."""
    hardest_between: tuple[float, float] = setting((0.5, 0.9), _SPAN)
    """Shares of the training between which --keep-hardest applies."""
