"""The training step on a GPU, as bench.step times it, with its kernels by name, and the loss curves of one size.

A case is a kind, a model and a batch size. Kinds are

    step        eager PyTorch and ours: eager, captured, on one stream; the largest student alone
    options     ours captured: as it is, without padded channels, with compiled blocks
    compiled    torch.compile, beside eager PyTorch and ours
    published   the published form, NCHW, and the students alone in turn, beside ours
    curves      the loss curves of all variants

All variants of a case are built in one process and timed in turn; their memory is what each of them adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

from ..step.agreement import FIRST, STEPS
from ..step.command import agreed, agreement_lines, figures, speedups
from ..step.problem import StepProblem
from ..step.variants import ALONE, VARIANTS
from .context import Context
from .device import Device
from .profile import busy, by_name, short

KINDS = {
    "step": ("eager", "ours_eager", "ours_captured", "ours_one_stream", "largest_alone"),
    "options": ("ours_captured", "ours_unpadded", "ours_blocks"),
    "compiled": ("eager", "compiled", "ours_captured"),
    "published": ("published", "eager_nchw", "ours_captured", "sequential"),
}
PROFILED = ("ours_captured", "ours_unpadded", "ours_blocks", "ours_one_stream", "compiled", "largest_alone")
ROWS = 10  # kernels in the printed table
CURVE_STUDENTS = 3  # fewer than 5, since 200 steps of all variants take long


def keys(argument: str, tiny: bool) -> list[str]:
    return argument.split(", ")


def parse(key: str, device: Device) -> tuple[str, StepProblem]:
    """Return the kind and the problem of a case; in a dry run, two students of ResNet-20 and few small images."""
    kind, model, batch = key.split()
    problem = StepProblem(model, batch_size=int(batch), device=device.name, precision="bf16")
    if device.tiny:
        problem = StepProblem("resnet20", 2, classes=10, batch_size=4, image_size=8, precision="fp32", batches=2)
    return kind, problem


def measure(key: str, context: Context) -> Iterator[dict]:
    """Yield the times of the variants of a case, then their profiles; or the comparison of the loss curves."""
    device = context.device
    kind, problem = parse(key, device)
    if kind == "curves":
        yield from curves(problem, device)
        return
    variants, memory, reasons = {}, {}, {}
    for name in KINDS[kind]:
        try:
            variants[name], memory[name] = device.step(name, problem)
        except Exception as error:
            if device.lost(error):
                raise
            reasons[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    calls = {name: variant.step for name, variant in variants.items()}
    wall = device.time_steps(calls, 2.0)
    found = {name: figures(problem, wall[name]) | memory[name] for name in calls}
    result = {
        "problem": asdict(problem),
        "variants": found | dict.fromkeys(reasons),
        "reasons": reasons,
        "speedups": speedups(found),
    }
    yield result
    result["profiles"] = {}
    for name in PROFILED:
        kernels = device.kernels(calls[name]) if name in calls else None
        if kernels:
            total = sum(kernel.end - kernel.start for kernel in kernels)
            result["profiles"][name] = asdict(busy(kernels)) | {"total_us": total, "kernels": by_name(kernels)}
    yield result


def curves(problem: StepProblem, device: Device) -> Iterator[dict]:
    """Yield the agreement of the variants that train a family."""
    if device.tiny:
        yield agreed(problem, ["ours_eager"], 1)
        return
    family = [name for name in VARIANTS if name not in (*ALONE, "compiled", "ours_blocks", "ours_unpadded")]
    fewer = replace(problem, num_students=CURVE_STUDENTS)
    yield agreed(fewer, family, FIRST)
    yield agreed(fewer, family, STEPS)


def lines(key: str, result: dict) -> Iterator[str]:
    """Yield the times of a case; with profiles, the kernels by name instead; or the agreement."""
    if "allowed" in result:
        yield from agreement_lines(result)
    elif "profiles" not in result:
        yield from _times(key, result)
    else:
        for name, profile in result["profiles"].items():
            yield from _kernels(name, profile)


def _times(key: str, result: dict) -> Iterator[str]:
    yield f"{key:<26}  ms a step [quartiles]   images/s  peak MB  first s"
    for name, v in result["variants"].items():
        if v is None:
            yield f"  {name:<16} not measured: {result['reasons'][name]}"
            continue
        spread = "[{:.2f}, {:.2f}]".format(*v["ms_spread"])
        yield (
            f"  {name:<16} {v['ms']:10.2f} {spread:>18} {v['images_per_second']:10.0f}"
            f" {v['peak_memory_mb']:8.0f} {v['first_step_seconds']:8.1f}"
        )
    for ours, factors in result["speedups"].items():
        yield f"  {ours}, times faster than: " + ", ".join(f"{name} {factor:.2f}" for name, factor in factors.items())


def _kernels(name: str, profile: dict) -> Iterator[str]:
    yield (
        f"{name}: {profile['launches']} kernels in {profile['milliseconds']:.2f} ms, "
        f"busy {100 * profile['busy_share']:.0f} %, {profile['running']:.2f} at a time"
    )
    for kernel, number, us in profile["kernels"][:ROWS]:
        yield f"  {us:9.1f} us {100 * us / profile['total_us']:5.1f} % {number:5d} x  {short(kernel, 44)}"
