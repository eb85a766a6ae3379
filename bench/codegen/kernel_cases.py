"""The kernels at representative sizes, with what each of them needs at least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from oekd_fast.kernels.common.launch import Launch

STUDENTS = 5
DTYPES = (torch.bfloat16, torch.float32)
# (B, C): few classes, rows of odd length, rows that fit into registers, rows that do not. On an H100 a program of the
# first three has one tile.
SIZES = (
    *((128, 10), (128, 100), (128, 1271)),
    *((16384, 10), (8192, 100), (1024, 1000), (8192, 4096), (8192, 32000), (2048, 128256)),
)
UNROLLED_TILES = 4  # longest loop over tiles that the compiler unrolls
DEVICE_VALUE_SIZES = ((128, 100), (8192, 32000))  # one size of each regime
# At T = 2, exponentials at temperature 1 are powers. T = 2.5 needs both, and so does a temperature on the device.
TEMPERATURES = {2.0: SIZES, 2.5: ((1024, 1000), (8192, 32000)), None: DEVICE_VALUE_SIZES}
# Not listed, since they spill 8 bytes a thread: mixed probabilities at 128x100 in bfloat16, mixed logits at 1024x1000,
# and the reverse divergence at 128x100 in float32. Nor standardised logits at 1024x1000 in bfloat16, whose threads hold
# four classes and so access 8 bytes at a time.
OBJECTIVES = {
    "gate": ((128, 100), (1024, 1000)),
    "teacher": ((128, 100), (1024, 1000)),
    "probabilities": ((1024, 1000),),
    "reverse": ((1024, 1000),),
    "js": ((128, 100), (1024, 1000)),
    "standardised": ((128, 100),),
}
# Forms of labels and means, at a size of each regime that supports them.
# Not listed: smoothed class weights at 8192x32000 in float32 spill 16 bytes a thread.
LABELS = {
    "class weights": ((128, 100), (1024, 1000), (8192, 32000)),
    "smoothed class weights": ((128, 100), (1024, 1000)),
    "soft labels": ((128, 100), (1024, 1000)),
    "losses of rows": ((128, 100), (1024, 1000), (8192, 32000)),
    "int32 labels over a number of items": ((128, 100), (1024, 1000), (8192, 32000)),
}
DELAYED = ((128, 100), (1024, 1000), (8192, 32000))
IMAGES = ((8, 2, 128 * 128), (8, 19, 256 * 512), (8, 19, 7 * 7), (8, 150, 128 * 128), (8, 1000, 14 * 14))  # (O, C, I)
# Channels, side and batch of maps with BatchNorm: powers of two, rows of 24 and 18 bytes, many rows, long rows.
NORMS = ((16, 32, 128), (12, 32, 128), (9, 32, 128), (64, 8, 128), (256, 56, 128), (2048, 7, 256))
FEATURE_ARRIVALS = {"resident": 3, "tiled": 2}  # of the chunks of a group, of groups, of students
# Channels and side of a CIFAR-ResNet's maps, the pseudo teacher's first.
BLOCKS = (((16, 12, 9, 6, 3), 32), ((32, 25, 19, 12, 6), 16), ((64, 51, 38, 25, 12), 8))


@dataclass(frozen=True)
class Demand:
    """Requirements on the machine code of one program, counted once for each tile.

    Attributes:
        vector: Bytes of an access of a thread, as wide as the alignment of the rows allows.
        loaded: Bytes that have to be loaded by accesses of that width.
        stored: Bytes that have to be stored by accesses of that width.
        exponentials: Exponentials that suffice.
        segment: Neighbouring bytes of memory that a warp has to access at once; 0 demands none.
        polls, arrivals, releases: Synchronising accesses that the kernel's protocol needs; see `synchronisation`.
    """

    vector: int
    loaded: int
    stored: int
    exponentials: int
    segment: int = 0
    polls: int = 0
    arrivals: int = 0
    releases: int = 0


@dataclass(frozen=True)
class Case:
    """One call of an op: its launches in order. Its tensors may be on the meta device, since nothing is run."""

    name: str
    build: Callable[[], tuple[Launch, ...]]
    demand: Callable[[Launch], Demand]


def cases() -> list[Case]:
    return (
        ensemble_kd_cases()
        + objective_cases()
        + label_cases()
        + delayed_cases()
        + image_cases()
        + feature_kd_cases()
        + norm_relu_cases()
    )


def ensemble_kd_cases() -> list[Case]:
    return [
        Case(
            f"ensemble_kd {form} {rows}x{classes} {str(dtype).removeprefix('torch.')} {_at(temperature)}",
            partial(build, rows, classes, dtype, temperature),
            ensemble_kd_demand,
        )
        for form, build in {"value_and_grad": _value_and_grad, "differentiable": _differentiable}.items()
        for temperature, sizes in TEMPERATURES.items()
        for dtype in DTYPES
        for rows, classes in sizes
    ]


def objective_cases() -> list[Case]:
    """Return the cases of objectives that only kernels with resident rows support."""
    return [
        Case(
            f"ensemble_kd {objective} {rows}x{classes} {str(dtype).removeprefix('torch.')}",
            partial(_objective, objective, rows, classes, dtype),
            ensemble_kd_demand,
        )
        for objective, sizes in OBJECTIVES.items()
        for dtype in DTYPES
        for rows, classes in sizes
    ]


def label_cases() -> list[Case]:
    """Return the cases of labels other than indices with equal weights, and of other divisors than their number."""
    return [
        Case(
            f"ensemble_kd {name} {form} {rows}x{classes} {str(dtype).removeprefix('torch.')}",
            partial(_with_labels, name, form == "differentiable", rows, classes, dtype),
            ensemble_kd_demand,
        )
        for name, sizes in LABELS.items()
        for dtype in DTYPES
        for rows, classes in sizes
        for form in ("value_and_grad", *(("differentiable",) if classes == sizes[-1][1] > 1000 else ()))
    ]


def delayed_cases() -> list[Case]:
    """Return a case of each regime with the delays of a stress test, which only has to compile without spills."""
    return [
        Case(
            f"ensemble_kd delayed {rows}x{classes} bfloat16",
            partial(_delayed, rows, classes),
            lambda launch: replace(ensemble_kd_demand(launch), loaded=0, stored=0),
        )
        for rows, classes in DELAYED
    ]


def image_cases() -> list[Case]:
    """Return the cases of logits [O, C, I], in which rows are neighbours in memory."""
    return [
        Case(
            f"ensemble_kd images {labels} {outer}x{classes}x{inner} {str(dtype).removeprefix('torch.')}",
            partial(_images, labels == "soft labels", outer, classes, inner, dtype),
            image_demand,
        )
        for labels, sizes in {"indices": IMAGES, "soft labels": IMAGES[1:2]}.items()
        for dtype in DTYPES
        for outer, classes, inner in sizes
    ]


def image_demand(launch: Launch) -> Demand:
    """Return the demand of a tile of neighbouring rows: whole sectors of memory, as far as a tile has the rows."""
    itemsize = launch.arguments["logits"][0].element_size()
    return replace(ensemble_kd_demand(launch), segment=min(32, launch.arguments["ROWS"] * itemsize))


def _at(temperature: float | None) -> str:
    return "device values" if temperature is None else f"T={temperature:g}"


def feature_kd_cases() -> list[Case]:
    """Return cases that demand no spills and all arrivals: odd channel counts make most accesses narrow."""
    return [
        Case(
            f"feature_kd value_and_grad {channels[0]}x{side}x{side} {str(dtype).removeprefix('torch.')}",
            partial(_feature_kd, channels, side, dtype),
            lambda launch: Demand(
                vector=16, loaded=0, stored=0, exponentials=0, arrivals=FEATURE_ARRIVALS[launch.kernel.__name__]
            ),
        )
        for dtype in DTYPES
        for channels, side in BLOCKS
    ]


def norm_relu_cases() -> list[Case]:
    """Return the cases of BatchNorm and ReLU in training: two launches forward and two backward."""
    return [
        Case(
            f"norm_relu {form} {channels}x{side}x{side} {str(dtype).removeprefix('torch.')}",
            partial(_norm_relu, form == "residual", channels, side, batch, dtype),
            norm_relu_demand,
        )
        for dtype in DTYPES
        for channels, side, batch in NORMS
        for form in ("residual", "alone")
    ]


def norm_relu_demand(launch: Launch) -> Demand:
    """Return the demand of a tile: all maps in accesses of 16 bytes, for any number of channels."""
    read, written = {
        "statistics": (("x",), ()),
        "normalise": (("x", "residual"), ("y",)),
        "gradient_sums": (("dy", "x", "y"), ("residual_grad",)),
        "gradient": (("dy", "x", "y"), ("grad",)),
    }[launch.kernel.__name__]
    a = launch.arguments
    tile = a["BLOCK"] * a["x"].element_size()
    loaded, stored = (tile * sum(a[name] is not None for name in names) for names in (read, written))
    return Demand(vector=16, loaded=loaded, stored=stored, exponentials=0, arrivals="done" in a)


def ensemble_kd_demand(launch: Launch) -> Demand:
    """Return the demand of a tile [ROWS, BLOCK] of S students, whose rows are aligned to VEC elements."""
    a = launch.arguments
    students, itemsize = len(a["logits"]), a["logits"][0].element_size()
    rows, streamed = a.get("ROWS", 1), "lag" in a
    # The compiler leaves out accesses beyond the row if the tile is wider than the row.
    inside = rows * min(a["BLOCK"], a["CLASSES"]) * itemsize
    tile = rows * a["BLOCK"]
    # Each softmax at T takes an exponential; the softmax at 1 is a power of it, or takes one more.
    both = 1 if a["POWER"] else 2
    members = students + 1 + len(a.get("teachers", ()))
    statistics, gradients = both * members * tile, (both * students + 1) * tile
    if a.get("DIVERGENCE") == 2:  # ratios of probabilities, for the value and again for the gradient
        statistics += 2 * students * tile
    if streamed:
        # A thread rescales its sums to a new maximum once a tile, and merges them at the end of a chunk and of a row.
        exponentials = statistics + both * (students + 1 + 2 * a["WIDTH"]) * a["THREADS"]
        exponentials += gradients if a["grads"] else 0
    elif launch.kernel.__name__ == "gradients":
        # The compiler may repeat the instructions of a loop over few tiles for each of them.
        exponentials = gradients * (a["TILES"] if a["TILES"] <= UNROLLED_TILES else 1)
    else:
        exponentials = statistics
    return Demand(
        vector=min(a["VEC"], a["BLOCK"]) * itemsize,
        loaded=students * inside * (2 if streamed and a["grads"] else 1),
        stored=len(a["grads"]) * inside,
        exponentials=exponentials,
        polls=streamed * (2 if a["grads"] else 1),  # for a row's statistics before its gradients, and before the sums
        arrivals=0 if a.get("done", a.get("counters")) is None else 1 + streamed,
        releases=int(streamed),
    )


def _problem(rows: int, classes: int, dtype: torch.dtype, temperature: float | None):
    """The loss of meta tensors, and buffers for its gradients. No temperature: values in a tensor."""
    from oekd_fast.kernels.ensemble_kd.launch import Problem

    logits, grads = (torch.empty(STUDENTS, rows, classes, dtype=dtype, device="meta").unbind() for _ in range(2))
    target = torch.empty(rows, dtype=torch.int64, device="meta")
    values = torch.empty(3, device="meta") if temperature is None else None
    return Problem(logits, target, None, temperature or 0.0, 0.7, 0.15, 0.0, -100, True, True, values), grads


def _value_and_grad(*size) -> tuple[Launch, ...]:
    from oekd_fast.kernels.ensemble_kd.launch import loss_launch

    problem, grads = _problem(*size)
    return (loss_launch(problem, grads)[1],)


def _delayed(rows: int, classes: int) -> tuple[Launch, ...]:
    from oekd_fast.kernels.common.delay import DELAYS

    delays = torch.empty(DELAYS.value + 1, dtype=torch.int32, device="meta")
    return tuple(
        replace(launch, arguments={**launch.arguments, "delays": delays}, resident=0)
        for launch in _value_and_grad(rows, classes, torch.bfloat16, 2.0)
    )


def _objective(objective: str, rows: int, classes: int, dtype: torch.dtype) -> tuple[Launch, ...]:
    from oekd_fast.kernels.ensemble_kd.launch import loss_launch

    problem, grads = _problem(rows, classes, dtype, 2.0)
    gate = torch.empty(rows, STUDENTS, device="meta")
    more = {
        "gate": {"ensemble_weights": gate, "ensemble_ce_weight": 1.0},
        "teacher": {"teacher_logits": [torch.empty(rows, classes, dtype=dtype, device="meta")]},
        "reverse": {"divergence": 1},
        "js": {"divergence": 2},
        "standardised": {"standardise_logits": True},
        "probabilities": {"mixing": torch.empty(STUDENTS, STUDENTS, device="meta"), "mix_probabilities": True},
    }[objective]
    problem = replace(problem, **more)
    return (loss_launch(problem, grads, weights_grad=gate if objective == "gate" else None)[1],)


def _with_labels(name: str, differentiable: bool, rows: int, classes: int, dtype: torch.dtype) -> tuple[Launch, ...]:
    from oekd_fast.kernels.ensemble_kd.launch import loss_launch

    problem, grads = _problem(rows, classes, dtype, 2.0)
    weights = torch.empty(classes, device="meta")
    more = {
        "class weights": {"class_weights": weights},
        "smoothed class weights": {"class_weights": weights, "label_smoothing": 0.1},
        "soft labels": {"target": torch.empty(rows, classes, dtype=dtype, device="meta")},
        "losses of rows": {"per_row": True, "mean": False},
        "int32 labels over a number of items": {
            "target": torch.empty(rows, dtype=torch.int32, device="meta"),
            "num_items": torch.empty((), dtype=torch.int64, device="meta"),
        },
    }[name]
    problem = replace(problem, **more)
    upstream = torch.empty(rows, device="meta") if problem.per_row else torch.empty((), device="meta")
    if differentiable:
        return _both_passes(problem, grads, upstream)
    return (loss_launch(problem, grads, upstream)[1],)


def _images(soft: bool, outer: int, classes: int, inner: int, dtype: torch.dtype) -> tuple[Launch, ...]:
    from oekd_fast.kernels.ensemble_kd.launch import loss_launch

    problem, _ = _problem(1, 1, dtype, 2.0)
    shape = STUDENTS, outer, classes, inner
    logits, grads = (torch.empty(shape, dtype=dtype, device="meta").unbind() for _ in range(2))
    target = logits[0] if soft else torch.empty(outer, inner, dtype=torch.int64, device="meta")
    return (loss_launch(replace(problem, logits=logits, target=target), grads)[1],)


def _differentiable(*size) -> tuple[Launch, ...]:
    problem, grads = _problem(*size)
    return _both_passes(problem, grads, torch.empty((), device="meta"))


def _both_passes(problem, grads, upstream) -> tuple[Launch, ...]:
    from oekd_fast.kernels.ensemble_kd.launch import gradients_launch, loss_launch

    result, forward = loss_launch(problem, keep_rows=True)
    return forward, gradients_launch(problem, grads, upstream, result.row_statistics, result.counted)


def _feature_kd(channels: tuple[int, ...], side: int, dtype: torch.dtype) -> tuple[Launch, ...]:
    from oekd_fast.kernels.feature_kd.launch import feature_kd_launch
    from oekd_fast.losses.feature_block import gradient_buffers

    def maps(n):
        return torch.empty(128, n, side, side, dtype=dtype).to(memory_format=torch.channels_last)

    teacher, *students = channels
    inputs = [maps(n) for n in students], maps(teacher)
    weights = [torch.empty(teacher, n, dtype=dtype) for n in students]
    biases = [torch.empty(teacher, dtype=dtype) for _ in students]
    out = gradient_buffers(inputs[0], weights, biases)
    loss, scale = torch.empty(()), torch.empty(())
    return (feature_kd_launch(*inputs, weights, biases, loss=loss, previous=None, out=out, grad_scale=scale),)


def _norm_relu(residual: bool, channels: int, side: int, batch: int, dtype: torch.dtype) -> tuple[Launch, ...]:
    from oekd_fast.kernels.norm_relu.launch import backward_launches, forward_launches
    from oekd_fast.kernels.norm_relu.plan import plan_norm_relu

    def new_map():
        return torch.empty(batch, side, side, channels, dtype=dtype, device="meta").permute(0, 3, 1, 2)

    x, dy, added, vector = new_map(), new_map(), new_map() if residual else None, torch.empty(channels, device="meta")
    plan = plan_norm_relu(batch * side**2, channels, dtype.itemsize)
    (y, *_), forward = forward_launches(x, vector, vector, added, 1e-5, True, plan)
    kept = y if residual else None
    return *forward, *backward_launches(dy, x, kept, vector, vector, vector, vector, residual, True, plan)[1]
