"""The result of a run: what `oekd_fast.train` returns, and what a finished run folder holds."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from oekd_fast.choice.pick import Choice, pick_student
from oekd_fast.models.model_sources import runs_code
from oekd_fast.report import ReportConfig, report
from oekd_fast.reporting.finished_runs import read_run
from oekd_fast.results.html import result_html
from oekd_fast.results.trained_student import TrainedStudent
from oekd_fast.runs.summary import print_summary


class TrainResult(dict[str, Any]):
    """The content of summary.json, with the students and metrics of the run.

    It is a dictionary, which `json.dumps` and other code that expects one take. A notebook shows it as a table and a
    picture of accuracy against size, and `print` as the table.

    Args:
        summary: content of summary.json.
        run_folder: folder of the run.
        own: True for a run of one's own. Its report then loads the data set that config.json names, and the function
            that builds its network is called if there is one. Both are what a folder from a stranger must not decide.

    Attributes:
        run_folder: folder of the run.
    """

    def __init__(self, summary: Mapping[str, Any], run_folder: Path | str, *, own: bool = False) -> None:
        super().__init__(summary)
        self.run_folder = Path(run_folder).expanduser()
        self._own = own

    @classmethod
    def of_run(cls, run_folder: Path | str, *, own: bool = False) -> TrainResult:
        """Read the result of a finished run.

        Args:
            run_folder: folder of the run. It may come from a stranger: nothing outside of it is opened.
            own: see the class.

        Raises:
            ReportError: the folder does not hold a finished run, or a file is damaged.
            OSError: a file cannot be read.
        """
        run = read_run(Path(run_folder).expanduser())
        # Older versions did not write these.
        known = {
            "model": run.config.model,
            "epochs": run.config.epochs,
            "trained_epochs": len(run.histories["ensemble"]),
        }
        return cls(known | run.summary, run.path, own=own)

    @property
    def students(self) -> tuple[TrainedStudent, ...]:
        """The students, from the largest to the smallest."""
        return tuple(
            TrainedStudent(
                student["index"],
                student["parameters"],
                student["accuracy"],
                student["baseline_accuracy"],
                self.run_folder / "students" / f"student_{student['index']}.safetensors",
                self._function,
            )
            for student in self["students"]
        )

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one for each epoch of each phase, in order.

        Raises:
            ReportError: a file of the run is missing or damaged.
        """
        return [line for lines in read_run(self.run_folder).histories.values() for line in lines]

    def pick(self, **options: Any) -> Choice:
        """Pick a student by a budget: the most accurate that fits, or with `min_accuracy` the smallest.

        Args:
            options: those of `pick_student`, such as ``max_parameters="100k"`` and ``max_ms=2``.

        Raises:
            NothingFitsError: nothing fits; the message says what comes closest.
            ReportError, ValueError: see `pick_student`.
        """
        return pick_student(self.run_folder, **{"model": self._function, **options})

    def report(self, console: Console | None = None, **options: Any) -> Path:
        """Write the HTML page of the run and its pictures, and return the path of the page.

        Args:
            console: where a line says which parts are missing; standard output by default.
            options: fields of `oekd_fast.report.ReportConfig`, such as ``output="page"`` and ``images=0``.

        Raises:
            ReportError, ValueError, OSError: see `oekd_fast.report.report`.
        """
        of_owner = {"with_data": True, "model": self._function} if self._own else {}
        return report(ReportConfig(runs=(self.run_folder,), **(of_owner | options)), console)

    @property
    def _function(self) -> str | None:
        """The function that builds the network, which only a run of one's own may name; None for other networks."""
        model = self.get("model")
        return model if self._own and isinstance(model, str) and runs_code(model) else None

    def _text(self, width: int) -> str:
        """Return the table as text of `width` columns, with notes that are longer."""
        text = io.StringIO()
        print_summary(Console(file=text, width=width, force_jupyter=False, force_terminal=False), self)
        return text.getvalue().rstrip("\n")

    def __repr__(self) -> str:
        return self._text(80)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self._text(options.max_width))

    def _repr_html_(self) -> str:
        return result_html(self)
