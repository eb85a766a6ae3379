"""Pick a student of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oekd_fast.choice.budget import Budget
from oekd_fast.choice.candidates import Candidate, candidates_of
from oekd_fast.choice.choose import choose
from oekd_fast.choice.measure import measure_run
from oekd_fast.latency.family import FamilyLatency
from oekd_fast.latency.result import Setting, preferred
from oekd_fast.reporting.finished_runs import ReportError, Run, read_run


@dataclass(frozen=True)
class Choice:
    """The choice of a student.

    Args:
        candidates: the students of the run in order, then the ensemble if it can be used.
        setting: how the networks were called for their latencies; None if there are none.
        remarks: a sentence for each student that is not faster than a larger one in that setting.
        chosen: the candidate that was chosen.
        reason: why, in one sentence.
        weights: file with the weights of the student, for `load_student`; None for the ensemble.
    """

    candidates: tuple[Candidate, ...]
    setting: Setting | None
    remarks: tuple[str, ...]
    chosen: Candidate
    reason: str
    weights: Path | None


@dataclass(frozen=True)
class Selection:
    """The candidates of a run with the latencies of one setting, and the budget.

    Args:
        run: the finished run.
        budget: limits of the choice.
        candidates, setting, remarks: see `Choice`.
    """

    run: Run
    budget: Budget
    candidates: tuple[Candidate, ...]
    setting: Setting | None
    remarks: tuple[str, ...]

    def choose(self) -> Choice:
        """Return the choice.

        Raises:
            NothingFitsError: no candidate keeps the budget.
        """
        chosen, reason = choose(self.candidates, self.budget)
        files = self.run.saved("students")
        weights = files[chosen.index - 1] if files and chosen.index is not None else None
        return Choice(self.candidates, self.setting, self.remarks, chosen, reason, weights)


def pick_student(
    run: Path | str,
    *,
    max_ms: float | None = None,
    max_parameters: int | str | None = None,
    max_bytes: int | str | None = None,
    min_accuracy: float | None = None,
    batch: int = 1,
    runtime: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    measure: bool = False,
    model: str | None = None,
) -> Choice:
    """Pick a student of a finished run by a budget: the most accurate that fits, or with `min_accuracy` the smallest.

    The accuracy on the validation images decides, at the epoch that the run selected. The test accuracy does not: the
    highest of several test accuracies overestimates what its network reaches on new images.

    Args:
        run: the run folder. It may come from a stranger: nothing outside of it is opened.
        max_ms: milliseconds of a call, at the median.
        max_parameters: number of parameters, or a text such as "100k".
        max_bytes: size of the weights in bytes, or a text such as "1.5MB" or "2MiB".
        min_accuracy: validation accuracy in percent; the candidate with the fewest parameters is picked then.
        batch: images of a call.
        runtime: "eager" or "onnx"; by default ONNX Runtime if it was measured.
        threads: threads on the CPU; by default the largest number that was measured.
        device: type of the device that was measured, such as "cpu"; by default an accelerator if one was measured.
        measure: measure on this machine, for at most two minutes, instead of reading what the run has measured.
        model: function that builds the networks, such as "nets.py:make", if the model of the run is one and `measure`
            is set; its code runs.

    Raises:
        ReportError: `run` is not the folder of a finished run, or a file is damaged.
        NothingFitsError: nothing fits; the message says what comes closest.
        ValueError: a limit is out of range, or the setting was not measured.
    """
    budget = Budget.of(max_ms, max_parameters, max_bytes, min_accuracy)
    return select(run, budget, batch, runtime, threads, device, measure, model).choose()


def select(
    folder: Path | str,
    budget: Budget,
    batch: int = 1,
    runtime: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    measure: bool = False,
    model: str | None = None,
) -> Selection:
    """Return the candidates of a run, with their latencies in the preferred setting among those that are asked for.

    Args and errors: see `pick_student`.
    """
    run = _read(Path(folder).expanduser())
    if measure:
        report, ensemble = measure_run(run, device, model)
        latency = FamilyLatency.of_report(report)
    else:
        latency, ensemble = FamilyLatency.of(run.summary), run.summary.get("ensemble")
    if latency is None:
        if budget.max_ms is not None:
            how = "" if measure else " (an older version, or --latency off); --measure measures it on this machine"
            raise ValueError(f"max_ms: expected a run with latency, got {run.path}, where none was measured{how}")
        return Selection(run, budget, tuple(candidates_of(run, None, None, ensemble)), None, ())
    setting = _setting(latency.settings, batch, runtime, threads, device)
    candidates = candidates_of(run, latency, setting, ensemble)
    return Selection(run, budget, tuple(candidates), setting, tuple(latency.remarks(setting)))


def _read(folder: Path) -> Run:
    """Read a run; errors name the argument `run`, of which there is one here."""
    try:
        return read_run(folder)
    except ReportError as error:
        raise ReportError(f"run: {str(error).removeprefix('runs: ')}") from error


def _setting(
    settings: Sequence[Setting], batch: int, runtime: str | None, threads: int | None, device: str | None
) -> Setting:
    """Return the preferred setting with the given values.

    Raises:
        ValueError: none was measured; the message names the first value that no setting has.
    """
    wanted = {
        "runtime": runtime,
        "device": None if device is None else device.partition(":")[0],
        "threads": threads,
        "batch": batch,
    }
    for name, value in wanted.items():
        if value is None:
            continue
        found = {getattr(setting, name): None for setting in settings}
        if value not in found:
            measured = ", ".join(str(other) for other in found if other is not None)
            raise ValueError(f"{name}: expected one of those that were measured, {measured}, got {value}")
        settings = [setting for setting in settings if getattr(setting, name) == value]
    return preferred(settings)
