"""Time a whole training step of a family of students, ours against PyTorch and torch.compile.

    python -m bench.step --model resnet20 --batch-size 128 --image-size 32 --device cpu --json FILE [--curves]

A step fetches and augments the batch, computes forward, all losses, backward and the optimizer's update, and counts
correct predictions. All variants have the same initial weights and hyperparameters (SGD, Nesterov):

    published         the behaviour of the published release               (published.py)
    eager             careful eager PyTorch, channels_last                 (eager.py)
    eager_nchw        the same in NCHW, which is faster on some CPUs
    compiled          eager under torch.compile
    ours_eager        our engine, not captured                             (ours.py)
    ours_captured     our engine, the step as one CUDA graph
    ours_one_stream   the same on one stream, one student after the other
    largest_alone     our engine, the largest student alone
    sequential        our engine, each student alone, one after the other

Each variant first runs in a process of its own, which measures its memory (probe.py). Then all variants are timed in
one process, in rounds of one sample each. `ms` is the wall time of a step; short steps are timed several in a row. On
CUDA, `device_ms` is the time between two events around one step. Variants that train differently from the published
form are marked (agreement.py).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch

from oekd_fast.common.machine import machine
from oekd_fast.runs.host_memory import keep_freed_memory

from .. import gpu_timing, result_file
from ..measure import Timing, interleave
from .agreement import FIRST, STEPS, agreement, small
from .probe import probe
from .problem import StepProblem
from .variants import ALONE, OTHER_TRAINING, VARIANTS, absent, build, on_cuda

MIN_SAMPLE = 0.05  # seconds


def measure(
    problem: StepProblem,
    names: list[str],
    *,
    seconds: float,
    probe_seconds: float,
    curve_steps: int,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Measure the variants of a problem.

    Args:
        names: Keys of `VARIANTS`.
        seconds: Duration of the timing.
        probe_seconds: Time limit of the first steps of a variant.
        curve_steps: Steps of the comparison of the training, or 0 for none.
        say: Called with lines about the progress.

    Returns:
        The content of the result file except for the machine: "variants", and "reasons" for those that are null.
    """
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
    """Return the times of one variant as they are written to the file."""
    result = {
        "ms": round(wall.median, 4),
        "ms_spread": [round(wall.lower, 4), round(wall.upper, 4)],
        "samples": wall.samples,
        "images_per_second": round(problem.batch_size / wall.median * 1e3, 1),
    }
    return result if device is None else result | {"device_ms": device.as_dict()}


def speedups(variants: dict[str, dict | None]) -> dict[str, dict[str, float]]:
    """Return how many times as long as ours each variant takes; "eager_best" is the faster of the two layouts."""
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
    """Compare how the variants that train the family train.

    "compiled" takes part only in the comparison over all `STEPS`, since it is compiled once more for that.
    """
    family = [name for name in names if name not in ALONE and (steps >= STEPS or name != "compiled")]
    result = agreement(family, small(problem), steps, begin)
    result["reasons"] = {name: OTHER_TRAINING for name in names if name in ALONE}
    if "compiled" in names and "compiled" not in family:
        result["reasons"]["compiled"] = "compared only with --curves, since it is compiled once more for that"
    return result


def table(result: dict) -> Iterator[str]:
    """Yield the results as lines of text."""
    yield f"{'':<16} {'ms a step [quartiles]':>32} {'images/s':>10} {'peak MB':>9} {'first step s':>13}  trains alike"
    trained = result.get("agreement", {}).get("variants", {})
    for name, v in result["variants"].items():
        if v is None:
            yield f"{name:<16} not measured: {result['reasons'][name]}"
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
    """Yield the errors of each variant and what is allowed as lines of text."""
    allowed = ", ".join(f"{name} {value:.1e}" for name, value in check["allowed"].items())
    yield f"agreement with the published form in fp64 over {check['steps']} steps; allowed: {allowed}"
    for name, v in check["variants"].items():
        errors = ", ".join(f"{measure} {v[measure]:.1e}" for measure in ("step_error", "loss_error", "curve_error"))
        yield f"  {name:<16} {errors}{'' if v['agrees'] else '  DISAGREES'}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32, help="height = width, in pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--num-students", type=int, default=5)
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto is bf16 on a GPU and fp32 on a CPU"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the timing, at least ten rounds")
    parser.add_argument("--probe-seconds", type=float, default=900.0, help="time limit of the first steps of a variant")
    parser.add_argument(
        "--curves", action="store_true", help=f"compare the training over {STEPS} steps instead of {FIRST}"
    )
    parser.add_argument("--no-agreement", action="store_true", help="do not compare the training")
    parser.add_argument("--json", type=Path, help="write the results to this file")
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
    keep_freed_memory()  # as oekd_fast.train does; all variants profit from it
    where = machine()
    print(result_file.describe(where), flush=True)
    print(result_file.describe(asdict(problem)), flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as compiled:
        # An empty cache, so that the first step includes the compilation; the probes share it.
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
        result_file.write(given.json, {"what": "a training step of the family", "machine": where, **result})


if __name__ == "__main__":
    main()
