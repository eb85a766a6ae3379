"""The ensemble loss with its gradients on a GPU against eager PyTorch, torch.compile and Liger-Kernel.

A case is one size. If the logits and gradients of one call fit into the second-level cache, the calls use several sets
of them in turn which together do not, so that the cache is cold. Very small sizes, which would need more than
`MOST_SETS` sets, are measured with a warm cache: their time is latency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..model.roofline import SIZES
from ..ops.ensemble_kd import CE_WEIGHT, KD_WEIGHT, STUDENTS, TEMPERATURE, naive_loss
from .context import Context
from .device import Device
from .figures import copy_bandwidth, derive

FEW = ((128, 100), (8192, 1000), (8192, 4096), (8192, 32000))  # latency; three kernels at the bandwidth of memory
BEYOND_L2 = 100 * 10**6  # bytes
MOST_SETS = 16
GRAPH_BELOW = 256 * 10**6  # bytes of a call; for larger calls the host keeps ahead without a graph
REPETITIONS = 48  # calls in a graph, rounded to whole rounds of the sets
COMPILE_SECONDS = 12.0  # torch.compile is not started with less time left

Set = tuple[list[Tensor], Tensor, list[Tensor]]  # logits, target, buffers of the gradients


def keys(argument: str, tiny: bool) -> list[str]:
    """Return the cases: the "few" of a short run, or the "others"."""
    sizes = FEW if argument == "few" else SIZES
    found = [f"{rows}x{classes} {dtype}" for dtype in ("bfloat16", "float32") for rows, classes in sizes]
    if tiny:
        return ["2x10 float32"] if argument == "few" else []
    return found if argument == "few" else [key for key in found if key not in keys("few", tiny)]


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


def variants(sets: list[Set], device: Device, backend: str = "auto") -> dict[str, Callable[[], Callable[[], object]]]:
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
        "compiled": lambda: with_backward(device.compiled(naive_loss)),
    }


def measure(key: str, context: Context) -> Iterator[dict]:
    """Yield the results of a size: first without torch.compile, which may exceed the time, then with it."""
    rows, classes, dtype = parse(key)
    device = context.device
    sets = make_sets(rows, classes, dtype, device.name)
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
    timed = {}

    def take(name: str, make: Callable[[], Callable[[], object]]) -> None:
        """Prepare one more variant, or record why it is left out."""
        try:
            call = make()
            call()
            result["peak_extra_bytes"][name] = device.peak_bytes(call)
            result["wall_ms"][name] = device.time_on_host(call, *((20, 5) if graph else (1, 5))).as_dict()
            kernels = device.kernels(call)
            if kernels is not None:
                result["launches"][name] = len(kernels)
            timed[name] = device.captured(call, repetitions) if graph else call
        except Exception as error:
            if device.lost(error):
                raise
            result["skipped"][name] = f"{type(error).__name__}: {error}"[:500]
            device.free()

    def time_all() -> dict:
        timings = device.time(timed, 0.4, repetitions)
        result["device_ms"] = {name: t.as_dict() for name, t in timings.items()}
        result["derived"] = derive(result, copy_bandwidth(context.results), device.card)
        return result

    *first, (last, make_compiled) = variants(sets, device).items()
    for name, make in first:
        take(name, make)
    left = context.left()
    result["skipped"][last] = (
        f"not started with {left:.0f} s left" if left < COMPILE_SECONDS else "stopped while compiling"
    )
    yield time_all()
    if left >= COMPILE_SECONDS:
        del result["skipped"][last]
        take(last, make_compiled)
        yield time_all()


def lines(key: str, result: dict) -> Iterator[str]:
    yield f"{key}, {result['cache']} cache     us  host us    GB/s  % copy  % floor launches"
    for name, timing in result["device_ms"].items():
        derived, wall = result["derived"][name], result["wall_ms"].get(name, {}).get("median")
        yield (
            f"  {name:<16} {timing['median'] * 1e3:12.1f} {_figure(wall and wall * 1e3, '8.1f')}"
            f" {derived['gigabytes_per_second']:7.0f} {_percent(derived.get('share_of_copy'))}"
            f"  {_percent(derived.get('share_of_floor'))} {_figure(result['launches'].get(name), '8d')}"
        )
    faster = result["derived"].get("value_and_grad", {}).get("faster_than", {})
    if faster:
        yield "  value_and_grad, times faster than: " + ", ".join(f"{name} {factor}" for name, factor in faster.items())
    for name, why in result["skipped"].items():
        yield f"  {name:<16} not measured: {why.splitlines()[0]}"


def _figure(value: float | None, form: str) -> str:
    return "-".rjust(int(form.split(".")[0].rstrip("d"))) if value is None else format(value, form)


def _percent(share: float | None) -> str:
    return f"{'-':>7}" if share is None else f"{100 * share:7.1f}"
