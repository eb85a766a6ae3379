"""Sums of gradients over all ranks: a flat bucket a student, sent while other students still compute."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from oekd_fast.distributed.world import naming_lost_ranks

_BASE = -1  # key of the base's bucket, beside the positions of the students


class Bucket:
    """Gradients of the parameters of some modules, and the running statistics of their norms, in one flat tensor.

    The gradients of all ranks are added up, since each rank has scaled its own by its share of the batch. Running
    statistics of norms in training mode are averaged with those shares as weights.

    Args:
        name: for messages.
        ranks: number of ranks in `group`; nothing is sent if it is 1.
        group: ranks that add up their gradients; None: all ranks.
        copies: number of ranks in `group` that have the same images, and therefore the same running statistics.
    """

    def __init__(
        self,
        name: str,
        modules: Iterable[nn.Module],
        ranks: int,
        group: dist.ProcessGroup | None = None,
        copies: int = 1,
    ) -> None:
        self.name, self.ranks = name, ranks
        self._group, self._copies = group, copies
        self._modules = list(modules)
        self._parameters = [p for module in self._modules for p in module.parameters()]
        self._with_gradient: list[nn.Parameter] | None = None
        self._statistics: list[Tensor] = []
        self._flat: Tensor | None = None
        self._views: list[Tensor] = []
        self._work: dist.Work | None = None

    @property
    def elements(self) -> int:
        """Number of elements that a step sends."""
        return sum(view.numel() for view in self._views)

    def pack(self, share: Tensor) -> None:
        """Copy gradients and running statistics to the flat tensor.

        Raises:
            TypeError: they differ in dtype.
            RuntimeError: other parameters have a gradient than in the first step; the ranks would no longer match.
        """
        with_gradient = [p for p in self._parameters if p.grad is not None]
        if self._with_gradient is None:
            self._allocate(with_gradient)
        elif len(with_gradient) != len(self._with_gradient):
            raise RuntimeError(
                f"{self.name}: expected gradients of {len(self._with_gradient)} parameters, as in the first step, "
                f"got {len(with_gradient)}"
            )
        if self._views:
            torch._foreach_copy_(self._views, self._contents())
            averaged = self._views[len(self._with_gradient) :]
            if averaged:
                torch._foreach_mul_(averaged, (share / self._copies).to(averaged[0].dtype))

    def send(self) -> None:
        """Start the sum over all ranks."""
        if self._views:
            self._work = dist.all_reduce(self._flat, group=self._group, async_op=True)

    def receive(self) -> None:
        """Wait for the sum, and copy it back to gradients and running statistics."""
        if self._work is not None:
            self._work.wait()
            self._work = None
            torch._foreach_copy_(self._contents(), self._views)

    def _contents(self) -> list[Tensor]:
        return [p.grad for p in self._with_gradient] + self._statistics

    def _allocate(self, with_gradient: list[nn.Parameter]) -> None:
        self._statistics = [b for module in self._modules for b in _running_statistics(module)]
        tensors = [*with_gradient, *self._statistics]
        dtypes = {tensor.dtype for tensor in tensors}
        if len(dtypes) > 1:
            raise TypeError(
                f"{self.name}: expected parameters and buffers of one dtype, got {sorted(map(str, dtypes))}"
            )
        self._with_gradient = with_gradient
        if tensors:
            self._flat = torch.empty(sum(t.numel() for t in tensors), dtype=tensors[0].dtype, device=tensors[0].device)
            pieces = self._flat.split([t.numel() for t in tensors])
            # A view has the strides of its tensor, so that copying does not permute channels_last weights.
            self._views = [
                piece.as_strided(t.shape, t.stride()) if _is_dense(t) else piece.view(t.shape)
                for piece, t in zip(pieces, tensors, strict=True)
            ]


class GradientBuckets:
    """The buckets of a family: one a student, in a static order, then that of the base.

    All ranks must start their sums in the same order, whatever student is done first. A sum is therefore started when
    all buckets before it in `order` are done too. Where there is no other rank, nothing is sent.

    Args:
        students: bucket of each student that this rank computes, by its position in the family.
        base: bucket of the modules that all students share.
        order: order of the students' sums, first the student that is done first.
        share: share of this rank's rows in the batch, a scalar on the device of the gradients.

    Attributes:
        active: whether there is another rank to send to.
    """

    def __init__(self, students: Mapping[int, Bucket], base: Bucket, order: Sequence[int], share: Tensor) -> None:
        self._buckets = {key: b for key, b in (*students.items(), (_BASE, base)) if b.ranks > 1}
        self._order = [key for key in (*order, _BASE) if key in self._buckets]
        self.active = bool(self._buckets)
        self.share = share
        self._lock = threading.Lock()
        self._packed: dict[int, torch.cuda.Event | None] = {}
        self._sent = 0
        self._fault: BaseException | None = None

    @property
    def elements(self) -> int:
        """Number of elements that a step sends, known after the first one."""
        return sum(bucket.elements for bucket in self._buckets.values())

    def done(self, student: int) -> None:
        """Report that the gradients of `student` are complete on the current stream; may be called in any thread.

        An error is raised by `finish` instead, so that no other student of this rank is stopped by it.
        """
        if student not in self._buckets:
            return
        try:
            with torch.no_grad():
                self._buckets[student].pack(self.share)
            event = None
            if self.share.is_cuda:
                event = torch.cuda.Event()
                event.record()
            with self._lock:
                self._packed[student] = event
                self._send_ready()
        except BaseException as error:
            self._fault = self._fault or error

    def base_done(self) -> None:
        """Report that all gradients of the base are complete."""
        self.done(_BASE)

    def all_done(self) -> None:
        """Report that all gradients of the family are complete."""
        for key in self._order:
            self.done(key)

    def finish(self) -> None:
        """Wait for all sums; afterwards gradients and running statistics are the same on all ranks of each bucket.

        Raises:
            LostRankError: another rank has ended, or does not answer.
        """
        fault, self._fault = self._fault, None
        self._packed.clear()
        sent, self._sent = self._sent, 0
        if fault is not None:
            raise fault
        if sent != len(self._buckets):
            raise RuntimeError(f"finish: expected {len(self._buckets)} complete buckets, got {sent}")
        with torch.no_grad(), naming_lost_ranks():
            for key in self._order:
                self._buckets[key].receive()

    def _send_ready(self) -> None:
        while self._sent < len(self._order) and self._order[self._sent] in self._packed:
            key = self._order[self._sent]
            event = self._packed[key]
            if event is not None:
                event.wait()  # another stream than the current one may have packed it
            with naming_lost_ranks():
                self._buckets[key].send()
            self._sent += 1


def _running_statistics(module: nn.Module) -> list[Tensor]:
    """Return the running statistics that a forward pass of `module` updates. Other buffers may be constants."""
    return [
        buffer
        for part in module.modules()
        if part.training
        for name, buffer in part.named_buffers(recurse=False)
        if name in ("running_mean", "running_var") and buffer is not None
    ]


def _is_dense(tensor: Tensor) -> bool:
    """Return whether the elements of `tensor` fill its memory without gaps or overlaps, in any order."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True
