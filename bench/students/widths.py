"""Latency of the students of a family in ONNX Runtime on a CPU, with channels in multiples of several divisors.

    python -m bench.students.widths [--model resnet20] [--image-size 32] [--divisors 1 4 8 16] [--batches 1 64]
        [--threads 1 2] [--widths 1 .75 .5 .25] [--seconds 10] [--json FILE]

Every student is exported with `Student.export` and takes normalised float32 images. All students of all divisors are
timed in turn in one process. Student 1 does not depend on the divisor and is measured once.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch

from oekd_fast import build_ensemble
from oekd_fast.common.machine import machine
from oekd_fast.common.packages import require
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.family.flops import student_flops

from .. import result_file
from ..measure import Timing, interleave
from .order import order

DIVISORS, BATCHES = (1, 4, 8, 16), (1, 64)
CLASSES = 10


def build(model: str, widths: Sequence[float] | None, divisor: int) -> StudentEnsemble:
    """Build the family with weights that do not depend on the machine."""
    torch.manual_seed(0)
    return build_ensemble(model, num_classes=CLASSES, widths=widths, width_divisor=divisor, adapters=False).eval()


def export(families: dict[int, StudentEnsemble], size: int, folder: Path) -> dict[tuple[int, int], Path]:
    """Export the students of each family, by divisor and index from 0; student 0 of the first family only."""
    first = next(iter(families))
    files = {}
    for divisor, family in families.items():
        for j in family.members[divisor != first :]:
            path = folder / f"{divisor}_{j}.onnx"
            family.student(j).export(path, preprocessing=False, image_shape=(family.in_channels, size, size))
            files[divisor, j] = path
    return files


def call_of(file: Path, threads: int, images: torch.Tensor) -> Callable[[], object]:
    """Return a function that runs the model in `file` on `images`."""
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Waiting threads of one network would otherwise take the processor from the next one.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, inputs)


def _onnxruntime() -> ModuleType:
    return require("onnxruntime", "this benchmark needs", "export")


def measure(
    files: dict[tuple[int, int], Path], size: int, batch: int, threads: int, seconds: float
) -> dict[tuple[int, int], Timing]:
    """Time all files in turn for about `seconds`."""
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    return interleave({key: call_of(file, threads, images) for key, file in files.items()}, seconds)


def of_divisors(timings: dict[tuple[int, int], Timing]) -> dict[str, list[dict]]:
    """Return the timings of all students by divisor; student 1 is the same for all."""
    (whole, *_), divisors = timings.values(), dict.fromkeys(divisor for divisor, _ in timings)
    students = {d: [timing for (divisor, j), timing in timings.items() if divisor == d and j > 0] for d in divisors}
    return {str(d): [timing.as_dict() for timing in (whole, *others)] for d, others in students.items()}


def line(result: dict) -> str:
    """Return a result as lines of text, one for each divisor."""
    head = f"batch {result['batch']}, {result['threads']} threads"
    return "\n".join(
        f"{head}, multiples of {divisor:>2}: "
        + "  ".join(f"{timing['median']:.3f}" for timing in timings)
        + f"  each faster: {order(timings)}"
        for divisor, timings in result["milliseconds"].items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", help="network of the package")
    parser.add_argument("--image-size", type=int, default=32, help="pixels a side")
    parser.add_argument("--widths", type=float, nargs="+", help="share of the channels of each student")
    parser.add_argument("--divisors", type=int, nargs="+", default=DIVISORS, help="divisors of channels")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="images a call")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="threads of ONNX Runtime")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of the measurement of a batch size")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()

    families = {divisor: build(arguments.model, arguments.widths, divisor) for divisor in arguments.divisors}
    where = machine() | {"onnxruntime": _onnxruntime().__version__}
    print(result_file.describe(where), flush=True)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        files = export(families, arguments.image_size, Path(folder))
        for threads in arguments.threads:
            for batch in arguments.batches:
                timings = measure(files, arguments.image_size, batch, threads, arguments.seconds)
                results.append({"batch": batch, "threads": threads, "milliseconds": of_divisors(timings)})
                print(line(results[-1]), flush=True)
    if arguments.json:
        content = result_file.report("Latency of students in ONNX Runtime", where, results) | {
            "model": arguments.model,
            "image_size": arguments.image_size,
            "families": {
                str(divisor): {
                    "channels": [family.architecture.map_channels(j, family.num_students) for j in family.members],
                    "parameters": family.parameter_counts(),
                    "flops": student_flops(family, arguments.image_size),
                }
                for divisor, family in families.items()
            },
        }
        result_file.write(arguments.json, content)


if __name__ == "__main__":
    main()
