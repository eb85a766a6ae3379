"""One student trained alone, without the family that it belongs to: a phase of a run with baselines, resumable."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed.world import ALONE
from oekd_fast.runs.interrupt import Interrupted, StopRequest
from oekd_fast.runs.plan import baseline_names, phase_works
from oekd_fast.runs.progress import RunProgress
from oekd_fast.runs.run import save_students
from oekd_fast.runs.run_folder import RunFolder
from oekd_fast.runs.set_up import RunInputs, open_run
from oekd_fast.runs.stop_vote import StopVote
from oekd_fast.runs.tasks import PhaseResult
from oekd_fast.runs.time_left import TimeLeft


def phase_of(config: TrainConfig, student: int) -> str:
    """Return the name of the phase that trains `student`, counted from 1, alone. `config.baseline` has to be set."""
    return baseline_names(config)[student - 1]


def saved_alone(config: TrainConfig, student: int) -> Path:
    """Return the path, without an ending, of `student`, counted from 1, after `train_alone`."""
    return RunFolder(config).baselines / f"student_{student}"


def train_alone(config: TrainConfig, student: int, console: Console) -> PhaseResult:
    """Train `student`, counted from 1, alone in the run folder of `config`, unless its epochs are finished there.

    It starts from the weights that it has in the family, and sees the same batches. It is saved as `saved_alone` says.

    Raises:
        Interrupted: a signal arrived, even if all epochs were finished; the same call continues.
        Other errors: see `oekd_fast.runs.run.train`.
    """
    name = phase_of(config, student)
    with StopRequest() as stop, open_run(config, ALONE) as run:
        inputs = RunInputs.load(run)
        phase = inputs.phase(name, {})
        run.folder.claim(run.config, name)
        run.folder.write_metrics(phase.history)
        works = phase_works(run.config, inputs.data, inputs.architecture, inputs.dataset.image_size)
        with RunProgress(console, TimeLeft([work for work in works if work.name == name], 0.0)) as progress:
            result = phase.run(StopVote(stop, ALONE), progress)
        save_students(run.folder.make_folder(run.folder.baselines), inputs.dataset, inputs.data, result)
        if stop.signal_number is not None:
            raise Interrupted(f"{config.run_folder}: finished, stopped before the next run", stop.signal_number)
        return result
