"""One run: trains its phases in order, saves its students, and writes its results to the run folder."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from oekd_fast.common.text import print_line
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import ImageDataset
from oekd_fast.distributed.agreement import failing_together
from oekd_fast.distributed.rendezvous import joined
from oekd_fast.distributed.world import World
from oekd_fast.family.saved import GATE_FILE, Normalisation, StudentMetadata, save_gate, save_student
from oekd_fast.figures.plotting import write_png
from oekd_fast.latency.measure import SECONDS
from oekd_fast.runs.build import family_notes
from oekd_fast.runs.console import RunConsole
from oekd_fast.runs.deployment import with_file_sizes, with_latency
from oekd_fast.runs.device_data import DeviceData
from oekd_fast.runs.interrupt import Interrupted, StopRequest
from oekd_fast.runs.phase import Phase
from oekd_fast.runs.plan import FAMILY, baseline_names, phase_names, phase_works
from oekd_fast.runs.progress import RunProgress
from oekd_fast.runs.ranks import device_type, resumed_config
from oekd_fast.runs.run_folder import RunFolder
from oekd_fast.runs.set_up import RunInputs, open_run
from oekd_fast.runs.stop_vote import StopVote
from oekd_fast.runs.summary import draw_report, summarise
from oekd_fast.runs.tasks import PhaseResult
from oekd_fast.runs.time_left import TimeLeft
from oekd_fast.runs.tracking import Tracking


def train(config: TrainConfig, console: Console | None = None, stop: StopRequest | None = None) -> dict[str, Any]:
    """Train the family that `config` describes, and with `config.baseline` each student alone.

    Args:
        config: options of the run; the run folder is `config.run_folder`.
        console: for progress and notes; None uses the process's standard output. If its output cannot be written to,
            a `RunConsole` has the run save a checkpoint and stop.
        stop: records signals that ask to stop. A caller of several runs passes its own, to learn of a signal that
            arrived when a run was about to finish.

    Processes that torchrun or another launcher has started train the run together; each of them calls this function
    with the same config.

    Returns:
        The content of summary.json.

    Raises:
        DataError, RunFolderError, FolderInUseError, CheckpointError, TrainingDiverged, Interrupted, ValueError: see
            those classes.
        FileNotFoundError: the file of the teacher or of the initial weights is missing.
        OSError: a file cannot be written. What was saved before stays whole, and a run with `resume` continues.
        OtherRankError: another process has raised an error, which it tells.
        LostRankError: another process has ended, or does not answer.
    """
    with joined(device_type(config.device), config.rank_timeout, config.join_timeout) as world:
        if not world.is_main:
            console = Console(quiet=True)
        return _train(resumed_config(config, world), console or RunConsole(), stop or StopRequest(), world)


def _train(config: TrainConfig, console: Console, stop: StopRequest, world: World) -> dict[str, Any]:
    start = time.perf_counter()
    with ExitStack() as stack:
        with failing_together(world):
            run = stack.enter_context(open_run(config, world))
            config, device, folder = run.config, run.device, run.folder
            stop.patient = world.size > 1
            stack.enter_context(stop)
            if config.tracker != "none" and world.is_main:
                stack.enter_context(Tracking(config, folder, console))
        if isinstance(console, RunConsole):
            stop.watch(console)
        inputs = RunInputs.load(run)
        dataset, data = inputs.dataset, inputs.data
        for note in inputs.notes:
            print_line(console, note)

        votes = StopVote(stop, world)
        time_left = None
        if config.progress and not console.quiet:
            afterwards = SECONDS if config.latency == "on" else 0.0
            time_left = TimeLeft(phase_works(config, data, inputs.architecture, dataset.image_size), afterwards)
        progress = stack.enter_context(RunProgress(console, time_left))
        results: dict[str, PhaseResult] = {}
        names = phase_names(config)
        for name in names:
            phase = inputs.phase(name, results)
            if name == FAMILY:
                for note in family_notes(config, inputs.architecture, phase.engine.ensemble):
                    print_line(console, note)
            with failing_together(world):
                folder.claim(config, name)
                folder.write_metrics([line for done in results.values() for line in done.history] + phase.history)
            results[name] = phase.run(votes, progress)
            votes.ask()
            if votes.signal_number is not None and name != names[-1]:
                raise Interrupted(
                    f"{name}: {votes.reason}finished, stopped before the next; --resume continues", votes.signal_number
                )
            if name == FAMILY:
                combined = combined_accuracy(config, phase, results, data, dataset.test.labels)
                combined_flipped = None
                if config.test_flips:
                    combined_flipped = combined_accuracy(config, phase, results, data, dataset.test.labels, flips=True)

        seconds = time.perf_counter() - start
        summary = summarise(config, results, device, seconds, dataset.image_size, combined, combined_flipped)
        with failing_together(world):
            if world.is_main:
                summary = _write_results(folder, config, summary, results, dataset, data)
                if config.latency == "on":
                    # The other ranks wait meanwhile.
                    seconds = SECONDS if world.size == 1 else min(SECONDS, config.rank_timeout / 4)
                    summary = with_latency(
                        summary, folder.students, results[FAMILY], device, console,
                        seconds=seconds, stopping=lambda: stop.signal_number is not None,
                    )  # fmt: skip
                    with _saying_how_to_go_on():
                        folder.write_summary(summary)
                problem = write_png(folder.report_file, lambda: draw_report(config, summary, results))
                if problem is not None:
                    print_line(console, problem)
        return json.loads(world.from_main(json.dumps(summary).encode())) if world.size > 1 else summary


def _write_results(
    folder: RunFolder,
    config: TrainConfig,
    summary: dict[str, Any],
    results: Mapping[str, PhaseResult],
    dataset: ImageDataset,
    data: DeviceData,
) -> dict[str, Any]:
    """Write the summary and the students, and return the summary with the sizes of their files."""
    with _saying_how_to_go_on():
        folder.write_summary(summary)  # first, because a disk that is full for the students may have room for it
        save_students(folder.make_folder(folder.students), dataset, data, results[FAMILY])
        for name in baseline_names(config) if config.baseline else ():
            save_students(folder.make_folder(folder.baselines), dataset, data, results[name])
        summary = with_file_sizes(summary, folder.students)
        folder.write_summary(summary)
    return summary


def combined_accuracy(
    config: TrainConfig,
    phase: Phase,
    results: Mapping[str, PhaseResult],
    data: DeviceData,
    labels: Tensor,
    flips: bool = False,
) -> float | None:
    """Return the test accuracy, in percent, of the mean prediction of all snapshots or generations.

    None for objectives that train a family, whose ensemble every evaluation measures.

    Args:
        phase: the last one of the network, finished. Its network is borrowed and has the same weights afterwards.
        results: results of all phases so far, by name.
        labels: int64 [N], of the test split.
        flips: predict by the mean logits of each image and its mirror image.
    """
    if not config.family_objective.alone:
        return None
    states = results[FAMILY].snapshots or [result.ensemble.state_dict() for result in results.values()]
    evaluator = phase.engine.evaluator
    network = evaluator.ensemble
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    mean: Tensor | float = 0.0
    for state in states:
        network.load_state_dict(state)
        mean = mean + evaluator.probabilities(data.test, flips)[0] / len(states)
    network.load_state_dict(own)
    return round(100.0 * (mean.argmax(dim=1) == labels.cpu()).float().mean().item(), 4)


@contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    """Have an error of the system say that only the writing of results failed."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror} (the training is complete; --resume writes the results again)"
        raise OSError(error.errno, reason, error.filename) from error


def save_students(folder: Path, dataset: ImageDataset, data: DeviceData, result: PhaseResult) -> None:
    """Save the students of a phase, with the weights of its selected epoch, and its gate if it has one."""
    for j, accuracy in zip(result.ensemble.members, result.test.accuracy, strict=True):
        metadata = StudentMetadata.of(
            result.ensemble,
            j,
            image_size=dataset.image_size,
            classes=dataset.classes,
            normalisation=Normalisation(*data.normalisation),
            accuracy=accuracy,
        )
        save_student(result.ensemble.student(j), folder / f"student_{j + 1}", metadata, result.ensemble.architecture)
    if result.ensemble.gate is not None:
        save_gate(result.ensemble.gate, folder / GATE_FILE)
