"""Our training step on one process and on several ranks of this machine, and the cost of the vote of each step.

    python -m bench.step.ranks [--json FILE] [--ranks 2] [--batch-size 128] [--seconds 60]

The variants are processes that take turns. `--batch-size` counts the images of a step over all ranks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist

from oekd_fast.common.machine import machine
from oekd_fast.distributed.vote import Vote
from oekd_fast.distributed.world import World
from oekd_fast.runs.host_memory import keep_freed_memory

from .. import result_file
from ..measure import Timing, interleave
from .ours import OurStep
from .problem import StepProblem
from .worker import Worker, Workers, serve

SAMPLE = 0.4  # seconds
VOTES = 2000


def serve_rank(world: World, store: str, threads: int, student_ranks: int, problem: StepProblem) -> None:
    """Serve steps of one rank, each with the vote of a run, after timing votes alone."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    if world.size > 1:
        dist.init_process_group("gloo", store=dist.FileStore(store, world.size), rank=world.rank, world_size=world.size)
    ours, vote = OurStep(problem, world=world, student_ranks=student_ranks), Vote(world)

    def step() -> None:
        vote.begin(0)
        ours.step()
        vote.result()

    step()  # the size of the buckets is known after it
    serve(step, {"vote": votes_alone(vote).as_dict(), "sent_bytes": 4 * ours.engine.buckets.elements})


def votes_alone(vote: Vote) -> Timing:
    """Return the milliseconds of a vote with nothing to overlap it."""
    samples = []
    for _ in range(VOTES):
        start = time.perf_counter()
        vote.of_all(0)
        samples.append(1e3 * (time.perf_counter() - start))
    return Timing.of(samples)


def start(ranks: int, threads: int, student_ranks: int, problem: StepProblem, folder: str) -> Workers:
    """Start the processes of one variant."""
    store = str(Path(folder) / f"store-{ranks}-{threads}-{student_ranks}")
    common = ["--serve", store, "--ranks", str(ranks), "--threads", str(threads), "--student-ranks", str(student_ranks)]
    common += ["--model", problem.model, "--batch-size", str(problem.batch_size)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return Workers([Worker(["bench.step.ranks", *common, "--rank", str(r)], environment) for r in range(ranks)])


def measure(ranks: int, problem: StepProblem, seconds: float) -> dict:
    """Time one process with `ranks` threads, one with one thread, and `ranks` ranks with one thread each."""
    data_parallel, student_parallel = f"{ranks} ranks x 1 thread", f"{ranks} student ranks x 1 thread"
    names = {
        f"1 process x {ranks} threads": (1, ranks, 1),
        "1 process x 1 thread": (1, 1, 1),
        data_parallel: (ranks, 1, 1),
        student_parallel: (ranks, 1, ranks),
    }
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        workers = {}
        for name, variant in names.items():
            workers[name] = start(*variant, problem, folder)
            stack.callback(workers[name].stop)
        timings = interleave({name: w.step for name, w in workers.items()}, seconds, SAMPLE, calls_before=3)
        of_ranks = workers[data_parallel].about
    one, single, several, _ = (timings[name].median for name in names)
    return {
        "model": problem.model,
        "students": problem.num_students,
        "batch_size": problem.batch_size,
        "ranks": ranks,
        "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        "speed_of_ranks": {
            f"against 1 process x {ranks} threads": round(one / several, 3),
            "against 1 process x 1 thread": round(single / several, 3),
        },
        "vote_milliseconds": of_ranks[0]["vote"],
        "sent_bytes": int(statistics.mean(rank["sent_bytes"] for rank in of_ranks)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="measuring time")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--student-ranks", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    problem = StepProblem(model=arguments.model, batch_size=arguments.batch_size, batches=16)
    if arguments.serve:
        world = World(arguments.rank, arguments.ranks)
        serve_rank(world, arguments.serve, arguments.threads, arguments.student_ranks, problem)
        return
    result = measure(arguments.ranks, problem, arguments.seconds)
    for name, timing in result["milliseconds"].items():
        print(f"{name:>28}: {timing['median']:8.1f} ms [{timing['lower']:.1f}, {timing['upper']:.1f}]")
    print(result["speed_of_ranks"], "vote", result["vote_milliseconds"]["median"], "ms,", result["sent_bytes"], "bytes")
    if arguments.json:
        content = result_file.report("one training step on one process and on several ranks, fp32", machine(), [result])
        result_file.write(arguments.json, content)


if __name__ == "__main__":
    main()
