"""Calls of the loss on CUDA whose launches are prepared: a call like an earlier one costs little time on the host.

The first calls of a kind check their arguments, choose a backend, plan a launch, and let Triton bind the arguments of
the kernel. The second call prepares all that, and from the third on a C++ function (csrc/launch) recognises the kind of
the call, allocates the results and launches the kernel. It is the same kernel with the same plan, so the results have
the same bits.

Calls are of one kind if they agree in everything that the checks, the plan and Triton's specialisation of kernels
depend on: number, shapes, strides, dtypes and device of the tensors, whether their addresses are divisible by 16 bytes,
the options, the stream, and whether autograd needs a gradient. Temperature, ce_weight and kd_weight are free, but for
what the kernels are compiled for: whether the temperature is 1, 2, 3 or 4.

Calls of the other kinds take the usual path, each time: those with a tensor among the options, external teachers,
probabilities as target or logits of other shapes than S times [B, C]; those with ``out``, ``grad_scale`` or
``weights_grad``; those with ``validate``; calls inside torch.compile, torch.func, a dispatch mode or the capture of a
CUDA graph; and all calls if the C++ extension is not installed for this torch and Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from oekd_fast import native
from oekd_fast.losses.autograd import gradients_from_rows
from oekd_fast.losses.backends import TRITON, Backend
from oekd_fast.losses.calls import EnsembleKDCall
from oekd_fast.losses.schemas import prepared_launches

CAPACITY = 256  # kinds of calls; those that were used last are kept


class PreparedLosses:
    """The prepared calls on one type of device; see the module.

    Attributes:
        run: a function of with_gradients, logits, target, options and beside that runs a call if its launch is
            prepared. It returns the statistics, then the gradients if they are asked for, as
            ``ensemble_kd_value_and_grad`` does; None if no launch is prepared for the call. ``options`` are the fields
            of :class:`oekd_fast.losses.calls.KDOptions` in their order, ``beside`` is everything else that the call
            depends on.

    Args:
        device: "cuda"; tests prepare interpreted kernels on the CPU.
        capacity: number of kinds of calls.
        launcher: makes the function that launches a kernel, from the launch that was planned and the handle of the
            stream.

    Raises:
        RuntimeError: the C++ extension is unavailable.
    """

    def __init__(
        self,
        device: str = "cuda",
        capacity: int = CAPACITY,
        launcher: Callable[[Any, int], Callable[..., None]] = lambda launch, stream: launch.prepare(stream),
    ) -> None:
        self._module = native.launch_module()
        if self._module is None:
            raise RuntimeError(native.why_no_executor())
        self._calls = self._module.PreparedCalls(device, capacity)
        self.run = self._calls.run  # without a call of Python in between
        self._device, self._capacity, self._launcher = device, capacity, launcher
        # Kinds that were seen once, in order, and whether their launches may be prepared the next time.
        self._seen: dict[bytes, bool] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def remember(
        self, with_gradients: bool, logits: Any, target: Any, options: tuple, beside: tuple, call: EnsembleKDCall
    ) -> None:
        """Prepare launches for calls like this one, which a Triton kernel has run, if it is the second of its kind.

        Args:
            with_gradients, logits, target, options, beside: arguments of ``run``.
            call: the checked call of these arguments.
        """
        if call.stacked is not None or call.layout is not None:
            return
        key = self._calls.key(with_gradients, logits, target, options, beside)
        if key is None:
            return
        if (may_prepare := self._seen.get(key)) is None:
            if len(self._seen) >= 4 * self._capacity:
                del self._seen[next(iter(self._seen))]
            self._seen[key] = True
        elif may_prepare:
            self._seen[key] = self._prepare(key, with_gradients, call)

    def _prepare(self, key: bytes, with_gradients: bool, call: EnsembleKDCall) -> bool:
        """Prepare the launches of a kind of call; return False if they cannot be prepared."""
        kernels = prepared_launches()
        problem = kernels.Problem([z.detach() for z in call.students], **call.op_kwargs())
        if not kernels.covers(problem):
            return False
        needs_node = not with_gradients and torch.is_grad_enabled() and any(z.requires_grad for z in call.students)
        if not needs_node:
            recipe = kernels.value_and_grad if with_gradients else kernels.value
            self._calls.insert(key, self._prepared(recipe(problem)), None, None)
        elif problem.per_row or not TRITON.keeps_rows(call):
            return False
        else:
            forward, backward = kernels.value_and_rows(problem), kernels.gradients(problem)
            self._calls.insert(key, self._prepared(forward), self._prepared(backward), _other_backward(call))
        return True

    def _prepared(self, recipe: Any):
        stream = torch.cuda.current_stream().cuda_stream if self._device == "cuda" else 0
        launch = self._launcher(recipe.launch, stream)
        return self._module.PreparedLaunch(launch, recipe.arguments, recipe.blocks, recipe.outputs)


def _other_backward(call: EnsembleKDCall) -> Callable[..., Sequence[Tensor]]:
    """Return a function for backward passes like that of `call` which the prepared launch does not fit."""
    ops, kwargs = TRITON.ops(call), call.op_kwargs()
    del kwargs["target"]  # it would stay in memory

    def gradients(logits, target, row_statistics, counted, upstream, numbers):
        temperature, ce_weight, kd_weight = numbers
        values = {"target": target, "temperature": temperature, "ce_weight": ce_weight, "kd_weight": kd_weight}
        logits = [z.detach() for z in logits]
        _, *grads = gradients_from_rows(ops, False, kwargs | values, logits, row_statistics, counted, upstream, None)
        return grads

    return gradients


@cache
def on_cuda() -> PreparedLosses | None:
    """The prepared calls of this process on CUDA; None if the C++ extension is unavailable."""
    return None if native.launch_module() is None else PreparedLosses()


def run(with_gradients: bool, logits: Any, target: Any, options: tuple, beside: tuple) -> tuple | None:
    """Run a call by ``PreparedLosses.run`` if it is an eager one on CUDA."""
    if not _is_eager_on_cuda(logits) or (losses := on_cuda()) is None:
        return None
    return losses.run(with_gradients, logits, target, options, beside)


def remember(
    with_gradients: bool,
    logits: Any,
    target: Any,
    options: tuple,
    beside: tuple,
    call: EnsembleKDCall,
    backend: Backend,
) -> None:
    """Tell :meth:`PreparedLosses.remember` of an eager call on CUDA that `backend` has run."""
    if _is_eager_on_cuda(logits) and backend is TRITON and (losses := on_cuda()) is not None:
        losses.remember(with_gradients, logits, target, options, beside, call)


def _is_eager_on_cuda(logits: Any) -> bool:
    """Whether the logits are tensors on CUDA in a list or tuple, outside torch.compile and the capture of a graph."""
    if torch.compiler.is_compiling() or type(logits) not in (list, tuple) or not logits:
        return False
    first = logits[0]
    return isinstance(first, Tensor) and first.is_cuda and not torch.cuda.is_current_stream_capturing()
