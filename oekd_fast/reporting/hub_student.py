"""A student of a finished run for the Hugging Face hub, with what its model card says about the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from oekd_fast.family.saved import load_student
from oekd_fast.models import Architecture
from oekd_fast.reporting.finished_runs import Run, read_run
from oekd_fast.reporting.run_files import ReportError

if TYPE_CHECKING:
    from oekd_fast.family.hub import HubStudent


def student_of_run(run: Path | str, number: int, architecture: Architecture | str | None = None) -> HubStudent:
    """Load a student of a finished run for `HubStudent.push_to_hub`, with a model card made from the run.

    Args:
        run: run folder.
        number: number of the student, from 1.
        architecture: architecture of a network that is not registered; see `load_student`.

    Raises:
        ReportError: the folder does not hold a finished run with its students, or `number` is not one of them.
        ValueError: a file is damaged, or the architecture is unknown.
        ImportError: huggingface_hub or safetensors is not installed.
    """
    from oekd_fast.family.hub import HubStudent

    finished = read_run(Path(run).expanduser())
    paths = finished.saved("students")
    if not paths:
        count = len(finished.summary["students"])
        raise ReportError(f"{finished.path / 'students'}: expected weights of {count} students, got too few")
    if not 1 <= number <= len(paths):
        raise ReportError(f"number: expected a student in 1..{len(paths)}, got {number}")
    student = HubStudent(load_student(paths[number - 1], architecture), _facts(finished, number))
    student.architecture = architecture
    return student


def _facts(run: Run, number: int) -> dict[str, Any]:
    student = run.summary["students"][number - 1]
    return {
        "dataset": _public_name(run.summary["dataset"]),
        "baseline_accuracy": student["baseline_accuracy"],
        "relative_gain": student["relative_gain"],
        "ensemble_accuracy": run.summary["ensemble_accuracy"],
        "test_images": run.summary["test_images"],
        "epochs": run.config.epochs,
        "objective": run.config.objective,
    }


def _public_name(dataset: str) -> str:
    """Return the name of a data set; of a folder, its last part, since the rest says where the user keeps files."""
    path = Path(dataset).expanduser()
    return path.name if path.is_absolute() or path.exists() or dataset.startswith(".") else dataset
