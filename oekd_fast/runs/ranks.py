"""Set-up of a run on several ranks: device, threads, who loads the data first, and what must be the same on all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch

from oekd_fast import __version__
from oekd_fast.common.tensors import digest_of
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed.agreement import OtherRankError, check_same_on_all, failing_together
from oekd_fast.distributed.grid import StudentGrid, check_student_ranks
from oekd_fast.distributed.world import World
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.family.flops import family_flops
from oekd_fast.runs.data_fingerprint import DataFingerprint
from oekd_fast.runs.device_data import choose_device
from oekd_fast.runs.run_folder import stored_precision

T = TypeVar("T")
# Paths may differ between machines. What the data and the teacher hold is compared instead.
_PATHS = ("dataset", "teacher", "initial_weights")


def device_type(name: str) -> str:
    """Return the type of the device that `choose_device` returns for `name`, without touching the device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name.partition(":")[0]


def device_of_rank(name: str, world: World) -> torch.device:
    """Return the device of this rank: on CUDA, each rank of a machine has a GPU of its own.

    Raises:
        ValueError: the device is unknown or unavailable, one GPU is named for several ranks, or there are fewer GPUs
            than ranks.
    """
    if world.size == 1 or device_type(name) != "cuda":
        return choose_device(name)
    if ":" in name:
        raise ValueError(f"device: expected auto, cuda or cpu with several processes, got {name!r}")
    gpus = torch.cuda.device_count()
    if world.local_size > gpus:
        raise ValueError(
            f"device: expected a GPU for each of the {world.local_size} processes on this machine, got {gpus} GPUs"
        )
    device = choose_device(f"cuda:{world.local_rank}")
    torch.cuda.set_device(device)
    return device


@contextmanager
def threads_of_rank(threads: int | None, world: World) -> Iterator[None]:
    """Set torch's number of intra-op threads within the context.

    Args:
        threads: the number; None divides the cores of the machine among its ranks, and keeps torch's own number for a
            process alone.
    """
    before = torch.get_num_threads()
    if threads is None and world.size > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // world.local_size)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def first_on_each_machine(world: World, load: Callable[[], T]) -> T:
    """Return `load()`, which one rank of each machine calls before the others do, so that it downloads once."""
    loaded: T
    for turn in (True, False):
        with failing_together(world):
            if (world.local_rank == 0) is turn:
                loaded = load()
    return loaded


def check_same_run(
    world: World, config: TrainConfig, fingerprint: DataFingerprint, teacher: Mapping[str, Any] | None = None
) -> None:
    """Check that all ranks train the same: package versions, config, data, and external teacher. Collective.

    Args:
        fingerprint: fingerprint of the data.
        teacher: fingerprint of the teacher; None without one.

    Raises:
        ValueError: on the lowest rank that differs from rank 0.
        OtherRankError: on all other ranks.
    """
    versions = {"version of oekd_fast": __version__, "version of torch": str(torch.__version__)}
    fields = {name: value for name, value in config.training_fields().items() if name not in _PATHS}
    of_teacher = {f"{name} of the teacher": value for name, value in (teacher or {}).items()}
    check_same_on_all(world, versions | fields | of_teacher)
    if world.size == 1:
        return
    of_main = json.loads(world.from_main(json.dumps(fingerprint.as_dict()).encode() if world.is_main else None))
    with failing_together(world):
        difference = DataFingerprint.from_dict(of_main).differences(fingerprint)
        if difference is not None:
            raise ValueError(f"dataset: expected the data of rank 0; {difference}")


def student_grid(
    ensemble: StudentEnsemble,
    config: TrainConfig,
    image_shape: tuple[int, int, int],
    device: torch.device,
    world: World,
) -> StudentGrid | None:
    """Return how the ranks share the students of `ensemble`; None if each of them computes all. Collective.

    A student that trains alone is computed by all ranks. Costs are the floating-point operations of the branches.

    Raises:
        ValueError, OtherRankError: `config.student_ranks` fits neither the number of ranks nor that of students.
    """
    if config.student_ranks == 1 or len(ensemble.members) == 1:
        return None
    with failing_together(world):
        check_student_ranks(world.size, len(ensemble.members), config.student_ranks)
    costs = family_flops(ensemble, image_shape[1:]).branches
    return StudentGrid.of(world, costs, config.student_ranks, device.type)


def check_same_weights(world: World, ensemble: StudentEnsemble) -> None:
    """Check that all ranks start from the same weights. Collective; raises as `check_same_run`."""
    if world.size > 1:
        check_same_on_all(world, {"initial weights": digest_of(ensemble.state_dict())})


def resumed_config(config: TrainConfig, world: World) -> TrainConfig:
    """Return `config`, with `resume` set if the launcher has restarted the processes of the run. Collective.

    A resumed run whose precision is not set continues in that of its folder, whatever the default of the device is.
    """
    config = replace(config, resume=True) if world.restarts else config
    if not config.resume or config.precision is not None:
        return config
    stored = stored_precision(config) if world.is_main else None
    if world.size > 1:
        stored = json.loads(world.from_main(json.dumps(stored).encode() if world.is_main else None))
    return replace(config, precision=stored)


def raise_on_main(world: World, error: Exception) -> None:
    """Raise an error that all ranks have found: itself on rank 0, OtherRankError elsewhere, so that it is told once."""
    raise error if world.is_main else OtherRankError(0, str(error))
