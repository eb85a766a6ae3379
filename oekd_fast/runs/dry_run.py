"""Dry run: what a run would train and what it would take, found out by a few real steps, without writing anything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed.agreement import failing_together
from oekd_fast.distributed.rendezvous import joined
from oekd_fast.distributed.world import World
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.exporting.contents import ImageInput
from oekd_fast.family.saved import Normalisation
from oekd_fast.latency.measure import SECONDS as LATENCY_SECONDS
from oekd_fast.latency.networks import Network
from oekd_fast.latency.onnx import export_in_time
from oekd_fast.runs.build import family_notes
from oekd_fast.runs.host_memory import peak_memory
from oekd_fast.runs.plan import FAMILY, phase_works
from oekd_fast.runs.random_state import capture_random_state, restore_random_state
from oekd_fast.runs.ranks import device_type, resumed_config
from oekd_fast.runs.rehearsal import rehearse
from oekd_fast.runs.run_plan import DataFacts, FamilyFacts, PhasePlan, RunPlan
from oekd_fast.runs.set_up import RunInputs, open_run
from oekd_fast.runs.tasks import PhaseResult
from oekd_fast.training.channel_padding import without_padding

SECONDS = 10.0


def dry_run(config: TrainConfig, seconds: float = SECONDS) -> RunPlan:
    """Load the data and build each phase of a run as `train` does, time some steps of it, and write nothing.

    Time and memory are extrapolated from these steps, an evaluation and a checkpoint in memory. The random generators
    are the same afterwards. With ``config.resume``, the plan is what is left of the run in the run folder. Processes
    that torchrun or another launcher has started make the plan together, as they train. Errors are those of `train`.

    Args:
        config: options of the run.
        seconds: time for the training steps of all phases. Each phase trains at least three steps, however long.

    Raises:
        ValueError: the config does not fit the data, the model, the device or the run folder.
        OSError: a file is missing.
        CheckpointError: the checkpoint to resume from cannot be read.
    """
    with joined(device_type(config.device), config.rank_timeout, config.join_timeout) as world, _same_random_state():
        return _dry_run(resumed_config(config, world), seconds, world)


def _dry_run(config: TrainConfig, seconds: float, world: World) -> RunPlan:
    start = time.perf_counter()
    with ExitStack() as stack:
        with failing_together(world):
            run = stack.enter_context(open_run(config, world))
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        inputs = RunInputs.load(run)
        load_seconds, notes = time.perf_counter() - start, list(inputs.notes)
        results: dict[str, PhaseResult] = {}
        plans = []
        works = phase_works(run.config, inputs.data, inputs.architecture, inputs.dataset.image_size)
        for work in works:
            name, start = work.name, time.perf_counter()
            phase = inputs.phase(name, results)
            set_up = time.perf_counter() - start
            steps_left = 0 if phase.finished else phase.epochs * phase.steps_per_epoch - phase.steps_done
            done = rehearse(phase, work, inputs, seconds / len(works))
            plans.append(PhasePlan.of(phase, work, steps_left, set_up, done, run.config))
            if name == FAMILY:
                engine, batch_size = phase.engine, phase.batch_size
                network, size = without_padding(engine.ensemble), inputs.dataset.image_size
                family = FamilyFacts.of(network, size, run.config.family_objective.helpers)
                executor = engine.executor_kind
                notes += family_notes(run.config, inputs.architecture, engine.ensemble)
            # Later phases learn from this network or start with its weights; what it has learned makes no difference.
            network = without_padding(phase.engine.evaluator.ensemble).eval()
            results[name] = PhaseResult(
                network, 1, [], done.metrics, done.metrics, done.step.expected, phase.batch_size / done.step.expected
            )
        if run.config.latency == "on" and world.is_main:
            _export_a_student(inputs)
        host_bytes, device_bytes = _peak_bytes(run.device, world)
        return RunPlan(
            config=run.config,
            folder=run.folder.path,
            data=DataFacts.of(inputs.dataset),
            family=family,
            phases=tuple(plans),
            device=str(run.device),
            threads=torch.get_num_threads(),
            processes=world.size,
            batch_size=batch_size,
            executor=executor,
            load_seconds=load_seconds,
            latency_seconds=LATENCY_SECONDS if run.config.latency == "on" else 0.0,
            host_bytes=host_bytes,
            device_bytes=device_bytes,
            notes=tuple(notes),
        )


def _export_a_student(inputs: RunInputs) -> None:
    """Export the smallest student as the measurement of latency does, because the packages for it need memory."""
    config, data = inputs.run.config, inputs.data
    smallest = 0 if config.family_objective.alone else config.num_students - 1
    sizes = config.num_students, data.num_classes, data.in_channels
    student = build_ensemble(inputs.architecture, *sizes, (smallest,), adapters=False).eval().student(smallest)
    shape = (data.in_channels, inputs.dataset.image_size, inputs.dataset.image_size)
    images = ImageInput(shape, None, Normalisation(*data.normalisation))
    # Whatever the exporter raises for a network of the user, the run measures its latency in PyTorch alone then.
    with suppress(Exception):
        export_in_time([Network.of(student, images, ("logits",), cost=1.0)], LATENCY_SECONDS, stopping=lambda: False)


def _peak_bytes(device: torch.device, world: World) -> tuple[int | None, int | None]:
    """Return the peak memory of the host and of a CUDA device, in bytes, of the rank that has the most. Collective."""
    on_device = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    of_ranks = torch.stack(world.gather(torch.tensor([peak_memory() or 0, on_device])))
    host, on_device = of_ranks.max(dim=0).values.tolist()
    return host or None, on_device or None


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Restore the global random generators at the end."""
    state = capture_random_state({})
    try:
        yield
    finally:
        restore_random_state(state, {})
