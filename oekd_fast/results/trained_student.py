"""A student in the folder of a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oekd_fast.family.saved import LoadedStudent, load_student
from oekd_fast.models import Architecture
from oekd_fast.reporting.run_files import check_inside


@dataclass(frozen=True)
class TrainedStudent:
    """A student of a finished run.

    Args:
        index: number of the student, from 1, which is the largest.
        parameters: number of parameters.
        accuracy: test accuracy in percent, at the epoch that the run selected.
        baseline_accuracy: that of the same student trained alone; None if the run has none.
        path: file of its weights.
        model: architecture that `load` takes if it is given none; see `load_student`.
    """

    index: int
    parameters: int
    accuracy: float
    baseline_accuracy: float | None
    path: Path
    model: str | None = None

    def load(self, architecture: Architecture | str | None = None) -> LoadedStudent:
        """Load the network on the CPU, in evaluation mode.

        Args:
            architecture: architecture of a network that is not registered; see `load_student`.

        Raises:
            FileNotFoundError: the weights are missing.
            ReportError: a file leads out of the run folder by a link.
            ValueError, ImportError, OSError: see `load_student`.
        """
        for file in (self.path, self.path.with_suffix(".json")):
            check_inside(file, self.path.parent.parent)
        return load_student(self.path, self.model if architecture is None else architecture)
