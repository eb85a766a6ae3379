"""The ensemble loss with its gradients on a GPU against eager PyTorch, torch.compile and Liger-Kernel.

A case is one size. If the logits and gradients of one call fit into the second-level cache, the calls use several sets
of them in turn which together do not, so that the cache is cold. Very small sizes, which would need more than
`MOST_SETS` sets, are measured with a warm cache: their time is latency.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..gpu_timing import captured, in_turn, wall_milliseconds
from ..model.roofline import SIZES
from ..ops.ensemble_kd import CE_WEIGHT, KD_WEIGHT, STUDENTS, TEMPERATURE, naive_loss
from ..ops.variants import compiled
from .profile import kernels_of, peak_extra_bytes, profiler_sees_kernels

BEYOND_L2 = 100 * 10**6  # bytes
MOST_SETS = 16
GRAPH_BELOW = 256 * 10**6  # bytes of a call; for larger calls the host keeps ahead without a graph
REPETITIONS = 48  # calls in a graph, rounded to whole rounds of the sets
COMPILE_SECONDS = 12.0  # torch.compile is not started with less time left in the section

Set = tuple[list[Tensor], Tensor, list[Tensor]]  # logits, target, buffers of the gradients


def keys(quick: bool = False) -> list[str]:
    sizes = SIZES[1:5] if quick else SIZES
    return [f"{rows}x{classes} {dtype}" for dtype in ("bfloat16", "float32") for rows, classes in sizes]


def parse(key: str) -> tuple[int, int, torch.dtype]:
    size, dtype = key.split()
    rows, classes = map(int, size.split("x"))
    return rows, classes, getattr(torch, dtype)


def number_of_sets(bytes_a_set: int) -> int:
    """Return the number of sets that exceed the cache, or 1 if that takes more than `MOST_SETS`."""
    sets = -(-BEYOND_L2 // bytes_a_set)
    return 1 if sets > MOST_SETS else sets


def make_sets(rows: int, classes: int, dtype: torch.dtype, device: str) -> list[Set]:
    """Make the sets of a size: logits which require gradients, labels, buffers for the gradients."""
    generator = torch.Generator(device).manual_seed(0)
    sets = []
    for _ in range(number_of_sets(2 * STUDENTS * rows * classes * dtype.itemsize)):
        logits = []
        for _ in range(STUDENTS):
            z = torch.empty(rows, classes, dtype=dtype, device=device).normal_(std=4.0, generator=generator)
            logits.append(z.requires_grad_())
        target = torch.randint(classes, (rows,), generator=generator, device=device)
        sets.append((logits, target, [torch.empty_like(z, requires_grad=False) for z in logits]))
    return sets


def liger_loss() -> Callable[[list[Tensor], Tensor], Tensor]:
    """Return the loss made of Liger-Kernel's losses, one student at a time.

    Its cross-entropy overwrites the logits, so it gets copies.
    """
    from liger_kernel.transformers import LigerCrossEntropyLoss, LigerKLDIVLoss

    cross_entropy, divergence = LigerCrossEntropyLoss(), LigerKLDIVLoss(reduction="batchmean")

    def loss(logits: list[Tensor], target: Tensor) -> Tensor:
        teacher = F.softmax(torch.stack(logits).mean(dim=0).detach() / TEMPERATURE, dim=1)
        total = 0.0
        for z in logits:
            kl = divergence(F.log_softmax(z / TEMPERATURE, dim=1), teacher)
            total = total + CE_WEIGHT * cross_entropy(z.clone(), target) + KD_WEIGHT * TEMPERATURE**2 * kl
        return total

    return loss


def variants(sets: list[Set], backend: str = "auto") -> dict[str, Callable[[], Callable[[], object]]]:
    """Return, by name, functions that make a call which uses the sets in turn; making a call may fail."""

    def in_rounds(step: Callable[..., object]) -> Callable[[], object]:
        turns = cycle(sets)
        return lambda: step(*next(turns))

    def with_backward(loss: Callable[[list[Tensor], Tensor], Tensor]) -> Callable[[], object]:
        return in_rounds(lambda logits, target, out: torch.autograd.grad(loss(logits, target), logits))

    return {
        "value_and_grad": lambda: in_rounds(
            lambda logits, target, out: ensemble_kd_value_and_grad(logits, target, out=out, backend=backend)
        ),
        "differentiable": lambda: with_backward(lambda z, y: ensemble_kd_loss(z, y, backend=backend).loss),
        "eager": lambda: with_backward(naive_loss),
        "liger": lambda: with_backward(liger_loss()),
        "compiled": lambda: with_backward(compiled(naive_loss)),
    }


def measure(key: str, emit: Callable[[dict], None], deadline: float, quick: bool, device: str = "cuda") -> None:
    """Measure all variants of a size: first without torch.compile, which may exceed the time, then with it."""
    rows, classes, dtype = parse(key)
    sets = make_sets(rows, classes, dtype, device)
    moved = 2 * STUDENTS * rows * classes * dtype.itemsize
    graph = moved < GRAPH_BELOW
    repetitions = max(1, REPETITIONS // len(sets)) * len(sets) if graph and moved < BEYOND_L2 else 1
    result = {
        "rows": rows,
        "classes": classes,
        "dtype": str(dtype).removeprefix("torch."),
        "cache": "cold" if moved * len(sets) >= BEYOND_L2 else "warm",
        "sets": len(sets),
        "calls_in_a_graph": repetitions if graph else 0,
        **{name: {} for name in ("device_ms", "wall_ms", "peak_extra_bytes", "launches", "skipped")},
    }
    profiled = profiler_sees_kernels()
    seconds = 0.3 if quick else 1.0
    calls, timed = {}, {}

    def take(name: str, make: Callable[[], Callable[[], object]]) -> None:
        """Prepare one more variant, or record why it is left out."""
        try:
            call = make()
            call()
            result["peak_extra_bytes"][name] = peak_extra_bytes(call)
            result["wall_ms"][name] = wall_milliseconds(call, *((20, 5) if graph else (1, 5))).as_dict()
            if profiled:
                result["launches"][name] = len(kernels_of(call))
            timed[name] = captured(call, repetitions) if graph else call
            calls[name] = call
        except Exception as error:
            if is_fatal(error):
                raise
            result["skipped"][name] = f"{type(error).__name__}: {error}"[:500]
            torch.cuda.empty_cache()

    def time_all() -> None:
        timings = in_turn(timed, seconds, repetitions)
        result["device_ms"] = {name: t.as_dict() for name, t in timings.items()}
        emit(result)

    *first, (last, make_compiled) = variants(sets).items()
    for name, make in first:
        take(name, make)
    left = deadline - time.monotonic()
    result["skipped"][last] = f"stopped while compiling, with {left:.0f} s left of the section's time"
    time_all()
    if deadline - time.monotonic() < COMPILE_SECONDS:
        result["skipped"][last] = f"{left:.0f} s left of the section's time"
        emit(result)
        return
    del result["skipped"][last]
    take(last, make_compiled)
    time_all()


def is_fatal(error: Exception) -> bool:
    """Return whether an error left the GPU unusable for this process; out-of-memory and failed captures do not."""
    if isinstance(error, torch.cuda.OutOfMemoryError) or "CUDA error" not in str(error):
        return False
    try:
        torch.cuda.synchronize()
        return torch.ones(2, device="cuda").sum().item() != 2
    except RuntimeError:
        return True
