"""A whole training step of a family of students against what a user would otherwise have.

    python -m bench.step --model resnet20 --batch-size 128 --image-size 32 --device cpu --json FILE [--curves]

Fetching and augmenting the batch, forward, all losses, backward, optimizer, counting, from the same first weights with
the same hyperparameters (SGD, Nesterov):

    published         as the published release does it                     (step_published.py)
    eager             as careful PyTorch does it, channels_last            (step_eager.py)
    eager_nchw        the same in NCHW, on some CPUs the faster of the two
    compiled          eager under torch.compile
    ours_eager        our engine, not captured                             (step_ours.py)
    ours_captured     our engine, the step as one CUDA graph
    ours_one_stream   the same, one student after the other
    largest_alone     the largest student alone, our engine: parallel runs on a device each take as long
    sequential        each student alone, one after the other, our engine

Each variant first runs in a process of its own, for its memory (step_probe.py); then all are timed in one process, a
sample of each a round. `ms` is wall time a step, many behind each other where they are short; on CUDA `device_ms` is
the time between two events around one step. Variants that train differently are marked (step_agreement.py).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch

from oekd_fast.common.machine import machine
from oekd_fast.runs.host_memory import keep_freed_memory

from .. import gpu_timing
from ..measure import Timing, interleave
from .agreement import FIRST, STEPS, agreement, small
from .probe import probe
from .problem import StepProblem
from .variants import ALONE, OTHER_TRAINING, VARIANTS, absent, build, on_cuda

MIN_SAMPLE = 0.05  # s


def measure(
    problem: StepProblem,
    names: list[str],
    *,
    seconds: float,
    probe_seconds: float,
    curve_steps: int,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """What the file holds but for the machine: `variants`, and `reasons` where one of them is null."""
    reasons = {name: why for name in names if (why := absent(name, problem))}
    found: dict[str, dict] = {}
    for name in names:
        if name in reasons:
            continue
        try:
            found[name] = probe(name, problem, probe_seconds)
            say(f"{name}: first step after {found[name]['first_step_seconds']} s")
        except RuntimeError as error:
            reasons[name] = str(error)
    variants = {name: build(name, problem) for name in found}
    calls = {name: variant.step for name, variant in variants.items()}
    wait = torch.cuda.synchronize if on_cuda(problem) else lambda: None
    timings = interleave(calls, seconds, MIN_SAMPLE, calls_before=2, wait=wait) if calls else {}
    device = gpu_timing.in_turn(calls, seconds / 2) if on_cuda(problem) else {}
    result: dict = {
        "problem": asdict(problem),
        "variants": {
            name: figures(problem, timings[name], device.get(name)) | found[name] if name in found else None
            for name in names
        },
        "reasons": reasons,
    }
    result["speedups"] = speedups(result["variants"])
    del variants, calls
    if curve_steps:
        result["agreement"] = agreed(problem, list(found), curve_steps)
    return result


def figures(problem: StepProblem, wall: Timing, device: Timing | None = None) -> dict:
    """Of one variant."""
    result = {
        "ms": round(wall.median, 4),
        "ms_spread": [round(wall.lower, 4), round(wall.upper, 4)],
        "samples": wall.samples,
        "images_per_second": round(problem.batch_size / wall.median * 1e3, 1),
    }
    return result if device is None else result | {"device_ms": device.as_dict()}


def speedups(variants: dict[str, dict | None]) -> dict[str, dict[str, float]]:
    """How many times as long the others take as ours; "eager_best" is the faster of the two memory formats."""
    ms = {name: figures["ms"] for name, figures in variants.items() if figures}
    layouts = [ms[name] for name in ("eager", "eager_nchw") if name in ms]
    if layouts:
        ms["eager_best"] = min(layouts)
    return {
        ours: {theirs: round(ms[theirs] / ms[ours], 3) for theirs in ms if theirs != ours}
        for ours in ("ours_eager", "ours_captured")
        if ours in ms
    }


def agreed(
    problem: StepProblem, names: list[str], steps: int, begin: Callable[[str], object] = lambda name: None
) -> dict:
    """Agreement of the variants that train the family. Compiling again for it is for the whole check only."""
    family = [name for name in names if name not in ALONE and (steps >= STEPS or name != "compiled")]
    result = agreement(family, small(problem), steps, begin)
    result["reasons"] = {name: OTHER_TRAINING for name in names if name in ALONE}
    if "compiled" in names and "compiled" not in family:
        result["reasons"]["compiled"] = "looked at with --curves alone, since it is compiled again for that"
    return result


def table(result: dict) -> Iterator[str]:
    """Lines to read."""
    yield f"{'':<16} {'ms a step [quartiles]':>32} {'images/s':>10} {'peak MB':>9} {'first step s':>13}  trains alike"
    trained = result.get("agreement", {}).get("variants", {})
    for name, v in result["variants"].items():
        if v is None:
            yield f"{name:<16} -: {result['reasons'][name]}"
            continue
        verdict = {True: "yes", False: "NO: DISAGREES"}.get(trained.get(name, {}).get("agrees"), "-")
        spread = "[{:.1f}, {:.1f}]".format(*v["ms_spread"])
        yield (
            f"{name:<16} {v['ms']:>14.2f} {spread:>17} {v['images_per_second']:>10.1f} {v['peak_memory_mb']:>9.1f}"
            f" {v['first_step_seconds']:>13.1f}  {verdict}"
        )
    for ours, factors in result["speedups"].items():
        yield f"{ours} is faster than: " + ", ".join(f"{name} {factor:.2f}x" for name, factor in factors.items())
    if trained:
        yield from agreement_lines(result["agreement"])


def agreement_lines(check: dict) -> Iterator[str]:
    allowed = ", ".join(f"{name} {value:.1e}" for name, value in check["allowed"].items())
    yield f"agreement with the published form in fp64 over {check['steps']} steps; allowed: {allowed}"
    for name, v in check["variants"].items():
        errors = ", ".join(f"{measure} {v[measure]:.1e}" for measure in ("step_error", "loss_error", "curve_error"))
        yield f"  {name:<16} {errors}{'' if v['agrees'] else '  DISAGREES'}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32, help="pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--num-students", type=int, default=5)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 on a GPU")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing; at least ten rounds in any case")
    parser.add_argument("--probe-seconds", type=float, default=900.0, help="a variant has to its first steps")
    parser.add_argument("--curves", action="store_true", help=f"agreement over {STEPS} steps instead of {FIRST}")
    parser.add_argument("--no-agreement", action="store_true", help="times alone")
    parser.add_argument("--json", type=Path, help="write the results here")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    problem = StepProblem(
        model=given.model,
        num_students=given.num_students,
        classes=given.classes,
        batch_size=given.batch_size,
        image_size=given.image_size,
        device=given.device,
    )
    precision = ("bf16" if on_cuda(problem) else "fp32") if given.precision == "auto" else given.precision
    problem = replace(problem, precision=precision)
    keep_freed_memory()  # as oekd_fast.train does; here it serves all variants
    where = machine() | ({"gpu": torch.cuda.get_device_name()} if on_cuda(problem) else {})
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    print(", ".join(f"{name} {value}" for name, value in asdict(problem).items()), flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as compiled:
        # Empty at first, so that the time to compile is the time to compile, and then shared with the probes.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled
        result = measure(
            problem,
            given.variants,
            seconds=given.seconds,
            probe_seconds=given.probe_seconds,
            curve_steps=0 if given.no_agreement else STEPS if given.curves else FIRST,
            say=lambda line: print(line, flush=True),
        )
    print("\n".join(table(result)), flush=True)
    if given.json:
        report = {"what": "a training step of the family", "machine": where, **result}
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
