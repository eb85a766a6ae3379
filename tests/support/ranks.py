"""Processes that run functions as the ranks of a world, started once for many tests."""

import os
import tempfile
import traceback
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

from .forkserver import TIMEOUT


def _serve(pipe) -> None:
    """Run functions that arrive through `pipe` until it closes."""
    import torch
    import torch.distributed as dist

    from oekd_fast.distributed.world import World

    torch.set_num_threads(1)
    while True:
        try:
            function, arguments, rank, size, store = pipe.recv()
        except EOFError:
            return
        try:
            if size > 1:
                dist.init_process_group(
                    "gloo", store=dist.FileStore(store, size), rank=rank, world_size=size,
                    timeout=timedelta(seconds=TIMEOUT / 4),
                )  # fmt: skip
            try:
                pipe.send((True, function(World(rank, size, rank, size), *arguments)))
            finally:
                if size > 1:
                    dist.destroy_process_group()
        except BaseException as error:
            pipe.send((False, (type(error).__name__, str(error), traceback.format_exc())))


class RankError(AssertionError):
    """A rank raised; `kind` and `message` are those of its exception."""

    def __init__(self, rank: int, kind: str, message: str, trace: str) -> None:
        super().__init__(f"rank {rank}: {kind}: {message}\n{trace}")
        self.kind, self.message = kind, message


class Ranks:
    """A pool of processes."""

    def __init__(self, most: int) -> None:
        made = get_context("spawn")  # forks have once failed to connect to each other
        self._folder = tempfile.TemporaryDirectory()
        self._pipes, self._processes, self._calls = [], [], 0
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"
        for _ in range(most):
            ours, theirs = made.Pipe()
            process = made.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before

    def outcomes(self, size: int, function, *arguments) -> list:
        """Call `function(world, *arguments)` on `size` ranks; return each result, or the RankError of that rank."""
        self._calls += 1
        store = str(Path(self._folder.name) / f"store{self._calls}")
        for rank in range(size):
            self._pipes[rank].send((function, arguments, rank, size, store))
        outcomes = []
        for rank in range(size):
            if not self._pipes[rank].poll(TIMEOUT):
                raise TimeoutError(f"rank {rank} of {size} did not answer {function.__name__}")
            succeeded, value = self._pipes[rank].recv()
            outcomes.append(value if succeeded else RankError(rank, *value))
        return outcomes

    def run(self, size: int, function, *arguments) -> list:
        """Call `function(world, *arguments)` on `size` ranks and return their results; raise the first RankError."""
        outcomes = self.outcomes(size, function, *arguments)
        for outcome in outcomes:
            if isinstance(outcome, RankError):
                raise outcome
        return outcomes

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            process.kill()
        self._folder.cleanup()
