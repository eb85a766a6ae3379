"""Updates of BatchNorm's running statistics: at once, or those of all layers together at the end of a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class _Update:
    """A training batch that `norm` has seen, and its statistics, float32 [C]; None if they are applied already."""

    norm: nn.BatchNorm2d
    mean: Tensor | None
    variance: Tensor | None


_collected: ContextVar[list[_Update] | None] = ContextVar("collected", default=None)


@contextmanager
def updated_together() -> Iterator[None]:
    """Apply all calls of `update` within the context at its end, in one operation on the device each.

    The results have the same bits. The context applies to students that an executor runs in it too, on any thread or
    stream; it has to end on the stream that the executor's streams are joined to, which uses the statistics of all
    students. If the body raises an exception, no update is applied.
    """
    updates: list[_Update] = []
    token = _collected.set(updates)
    try:
        yield
    finally:
        _collected.reset(token)
    while updates:
        updates = _apply_first(updates)


@contextmanager
def statistics_unchanged(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Have norms in `modules` update copies of their running statistics within the context.

    A context of `updated_together` has to begin and end within it.
    """
    kept = [
        (part, name, buffer)
        for module in modules
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name in _STATISTICS
    ]
    try:
        for part, name, buffer in kept:
            setattr(part, name, buffer.clone())
        yield
    finally:
        for part, name, buffer in kept:
            setattr(part, name, buffer)


def update(norm: nn.BatchNorm2d, mean: Tensor | None = None, variance: Tensor | None = None) -> None:
    """Count a batch in `norm.num_batches_tracked`, and move its running statistics towards those of the batch.

    Args:
        norm: layer with running statistics and a momentum.
        mean, variance: statistics of the batch, float32 [C], `variance` unbiased; None if the running statistics have
            been updated already.
    """
    updates = collected()
    if updates is not None:
        updates.append(_Update(norm, mean, variance))
        return
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if mean is not None:
        torch._foreach_lerp_([norm.running_mean, norm.running_var], [mean, variance], norm.momentum)


def collected() -> list[_Update] | None:
    """Return the updates that the current context has collected; None outside of `updated_together`.

    A block of `torch.compile` is outside, because it fuses its updates itself.
    """
    return None if torch.compiler.is_compiling() else _collected.get()


@torch.no_grad()
def _apply_first(updates: list[_Update]) -> list[_Update]:
    """Apply the first update of each running mean; return the others, of layers that ran several times."""
    first: dict[int, _Update] = {}
    others = [u for u in updates if first.setdefault(id(u.norm.running_mean), u) is not u]
    counters = [u.norm.num_batches_tracked for u in first.values() if u.norm.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, 1)
    for momentum in dict.fromkeys(u.norm.momentum for u in first.values() if u.mean is not None):
        chosen = [u for u in first.values() if u.mean is not None and u.norm.momentum == momentum]
        running = [statistic for u in chosen for statistic in (u.norm.running_mean, u.norm.running_var)]
        torch._foreach_lerp_(running, [statistic for u in chosen for statistic in (u.mean, u.variance)], momentum)
    return others
