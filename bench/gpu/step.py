"""The training step on a GPU, as bench.step times it, and the loss curves of one size.

A case is a model and a batch size. All variants of a case are built in one process; their memory is what each of them
adds. torch.compile may take longer than the time allows, so it has its own cases at the end, together with the variants
that it is compared with.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import torch

from .. import gpu_timing
from ..measure import interleave
from ..model.roofline import CARDS, step_floor
from ..model.step_cost import step_costs
from ..step.agreement import FIRST, STEPS
from ..step.command import MIN_SAMPLE, agreed, figures, speedups
from ..step.problem import StepProblem
from ..step.variants import ALONE, VARIANTS, build
from .loss import is_fatal
from .profile import busy_of, profiler_sees_kernels

COMPILED = ("eager", "compiled", "ours_captured")
OTHERS = tuple(name for name in VARIANTS if name != "compiled")
PROFILED = ("ours_eager", "ours_captured", "ours_one_stream")
CURVE_STUDENTS = 3  # fewer than 5, since 200 steps of all variants take long


def keys(quick: bool = False) -> list[str]:
    """Return the cases, the most important ones first."""
    if quick:
        return ["step resnet20 128", "curves resnet20 128"]
    return [
        "step resnet20 128",
        "step resnet110 128",
        "compiled resnet20 128",
        "curves resnet20 128",
        "step resnet20 512",
        "step resnet110 512",
        "compiled resnet20 512",
        "compiled resnet110 128",
    ]


def parse(key: str) -> tuple[str, StepProblem]:
    kind, model, batch = key.split()
    return kind, StepProblem(model, batch_size=int(batch), device="cuda", precision="bf16")


def measure(key: str, emit: Callable[[dict], None], deadline: float, quick: bool) -> None:
    """Time the variants of a case, or compare the loss curves of the family."""
    kind, problem = parse(key)
    if kind == "curves":
        family = [name for name in OTHERS if name not in ALONE]
        fewer, steps = replace(problem, num_students=CURVE_STUDENTS), FIRST if quick else STEPS
        # The comparison takes longer than the runner waits for a line.
        emit(agreed(fewer, family, steps, lambda name: emit({"looking_at": name})))
        return
    variants, memory, reasons = {}, {}, {}
    for name in COMPILED if kind == "compiled" else OTHERS:
        try:
            variants[name], memory[name] = build_measured(name, problem)
        except Exception as error:
            if is_fatal(error):
                raise
            reasons[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    calls = {name: variant.step for name, variant in variants.items()}
    seconds = 1.0 if quick else 3.0
    wall = interleave(calls, seconds, MIN_SAMPLE, calls_before=2, wait=torch.cuda.synchronize)
    device = gpu_timing.in_turn(calls, seconds / 2)
    found = {name: figures(problem, wall[name], device[name]) | memory[name] for name in calls}
    result = {"problem": asdict(problem), "variants": found | dict.fromkeys(reasons), "reasons": reasons}
    result["speedups"] = speedups(found)
    emit(result)
    if profiler_sees_kernels():
        result["busy"] = {name: asdict(busy_of(calls[name])) for name in PROFILED if name in calls}
    result["floor_ms"] = floors(problem, torch.cuda.get_device_name())
    emit(result)


def build_measured(name: str, problem: StepProblem) -> tuple[object, dict]:
    """Build a variant; return it with its peak memory and the time until its first step was done."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.monotonic()
    variant = build(name, problem)
    torch.cuda.synchronize()
    first_step = time.monotonic() - start
    variant.step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    return variant, {"peak_memory_mb": round(peak / 1e6, 1), "first_step_seconds": round(first_step, 1)}


def floors(problem: StepProblem, card: str) -> dict[str, float]:
    """Return the lower bounds of bench.model in milliseconds, by model of bytes; empty for an unknown card."""
    known = next((c for name, c in CARDS.items() if name in card), None)
    if known is None:
        return {}
    costs = step_costs(problem)
    return {name: round(step_floor(cost, known, problem.precision).seconds * 1e3, 4) for name, cost in costs.items()}
