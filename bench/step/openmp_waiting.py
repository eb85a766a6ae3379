"""Our training step with default and passive waiting of OpenMP threads, alone and beside one busy process per core.

    python -m bench.step.openmp_waiting [--json FILE] [--batch-size 2] [--image-size 8] [--settings default passive]

OpenMP reads its environment when torch is loaded, so each setting has its own process. The processes take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..measure import interleave
from .worker import Worker, Workers, serve

SETTINGS = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    **{f"spin {count}": {"GOMP_SPINCOUNT": str(count)} for count in (1000, 10000, 30000)},
}
SAMPLE = 0.4  # seconds


def serve_step(batch_size: int, image_size: int) -> None:
    """Serve steps of the engine, one for each line of standard input."""
    from oekd_fast.common.machine import machine
    from oekd_fast.runs.host_memory import keep_freed_memory

    from .ours import OurStep
    from .problem import StepProblem

    keep_freed_memory()
    serve(OurStep(StepProblem(batch_size=batch_size, image_size=image_size, batches=16)).step, machine())


def start(setting: str, batch_size: int, image_size: int) -> Workers:
    """Start a process that trains with one setting."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    sizes = ["--batch-size", str(batch_size), "--image-size", str(image_size)]
    command = ["bench.step.openmp_waiting", "--serve", *sizes]
    return Workers([Worker(command, inherited | SETTINGS[setting])])


@contextmanager
def busy_cores() -> Iterator[None]:
    """Run one busy process for each core while the context is active."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(settings: list[str], batch_size: int, image_size: int, seconds: float) -> dict:
    """Return the step times of each setting, alone and beside busy processes."""
    with ExitStack() as stack:
        workers = {}
        for name in settings:
            workers[name] = start(name, batch_size, image_size)
            stack.callback(workers[name].stop)
        steps = {name: worker.step for name, worker in workers.items()}
        alone = interleave(steps, seconds, SAMPLE, calls_before=5)
        with busy_cores():
            beside = interleave(steps, seconds, SAMPLE, calls_before=1)
    return {
        "batch_size": batch_size,
        "image_size": image_size,
        "machine": workers[settings[0]].about[0],
        "milliseconds": {
            load: {name: timing.as_dict() for name, timing in timings.items()}
            for load, timings in (("alone", alone), ("beside one busy process per core", beside))
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["default", "passive"])
    parser.add_argument("--seconds", type=float, default=60.0, help="measuring time, alone and beside each")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_step(arguments.batch_size, arguments.image_size)
        return
    result = measure(arguments.settings, arguments.batch_size, arguments.image_size, arguments.seconds)
    text = json.dumps(
        {"what": "one training step, resnet20 x 5, fp32, by waiting of OpenMP threads", **result}, indent=1
    )
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
