"""The part of the report on runs that differ in the seed only: its chapters, and notes on missing ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from oekd_fast.figures.curves import curve_figure
from oekd_fast.paper.expected import paper_results
from oekd_fast.reporting import page
from oekd_fast.reporting.cam_chapter import Cams, cam_chapter, compute_cams
from oekd_fast.reporting.document import Chapter, Part
from oekd_fast.reporting.evaluation import Evaluation, Source, evaluate
from oekd_fast.reporting.finished_runs import Group, Run
from oekd_fast.reporting.gains import Gains, gains_of
from oekd_fast.reporting.headline import headline
from oekd_fast.reporting.latency_section import latency_parts
from oekd_fast.reporting.pictures import Pictures
from oekd_fast.reporting.prediction_chapters import agreement_chapter, calibration_chapter, classes_chapter
from oekd_fast.reporting.settings_chapter import settings_chapter
from oekd_fast.reporting.students_chapter import students_chapter
from oekd_fast.reporting.use_chapter import use_chapter


@dataclass(frozen=True)
class Section:
    """The part of the page on one group of runs.

    Args:
        group: the runs.
        source: where networks and test images come from.
        images: number of images of the Grad-CAM panels.
        explained: class that Grad-CAM explains.
        folder: folder of the page.
        picture: draws pictures.
    """

    group: Group
    source: Source
    images: int
    explained: Literal["predicted", "true"]
    folder: Path
    picture: Pictures

    def part(self) -> Part:
        """Return the part; what cannot be computed is missing, with a note, and the user is told."""
        lead = [page.paragraph(self._what(), "small")]
        if self.group.differences:
            lead.append(page.paragraph("Trained with " + ", ".join(self.group.differences) + "."))
        evaluation, cams = None, None
        try:
            evaluation = evaluate(self.group, self.source)
            cams = compute_cams(evaluation, self.images, self.explained, self.source.device)
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            evaluation = None
            problem = f"Calibration, agreement, accuracy and confusions by class and Grad-CAM are missing: {error}"
            self.picture.tell(problem)
            lead.append(page.note(problem))
        else:
            lead += map(page.note, evaluation.notes)
        return Part(self.group.title, "\n".join(lead), tuple(self._chapters(evaluation, cams)))

    def _what(self) -> str:
        """Return which runs are shown, in one line."""
        seeds = ", ".join(str(run.config.seed) for run in self._runs)
        epochs, images = self._runs[0].config.epochs, self._runs[0].summary["test_images"]
        versions = dict.fromkeys(run.summary["versions"].get("oekd_fast", "?") for run in self._runs)
        runs = f"{len(self._runs)} runs, seeds" if len(self._runs) > 1 else "One run, seed"
        length = f"{epochs} epoch{'s' if epochs > 1 else ''}"
        return f"{runs} {seeds}; {length}; {images:,} test images; trained with oekd_fast {', '.join(versions)}."

    @property
    def _runs(self) -> tuple[Run, ...]:
        return self.group.runs

    def _chapters(self, evaluation: Evaluation | None, cams: Cams | None) -> Iterator[Chapter]:
        gains, paper, picture = self._gains(evaluation), self._paper(), self.picture
        yield _chapter("headline", "Results", headline(self._runs, gains, paper, picture), is_open=True)
        yield _chapter("students", "Students", students_chapter(self._runs, gains, paper), is_open=True)
        yield _chapter("use", "Use a student", use_chapter(self._runs, self.folder))
        yield _chapter("training", "Training curves", self._curves())
        if evaluation is not None:
            yield _chapter("classes", "Classes and confusions", classes_chapter(evaluation, picture))
            yield _chapter("calibration", "Calibration", calibration_chapter(evaluation, picture))
            yield _chapter("agreement", "Agreement", agreement_chapter(evaluation, picture))
        if cams is not None:
            of_seed = f" of seed {self._runs[0].config.seed}" if len(self._runs) > 1 else ""
            yield _chapter("grad-cam", "Grad-CAM", cam_chapter(cams, of_seed, picture))
        if latency := tuple(latency_parts(self._runs, picture)):
            yield _chapter("latency", "Size on disk and latency", latency)
        yield _chapter("settings", "Settings and versions", settings_chapter(self._runs))

    def _curves(self) -> Iterator[str]:
        histories = [run.histories for run in self._runs]
        selected = [run.summary["selected_epoch"] for run in self._runs]
        yield self.picture(
            "curves", lambda: curve_figure(histories, selected), "Loss and validation accuracy of each epoch"
        )

    def _gains(self, evaluation: Evaluation | None) -> Gains | None:
        known = evaluation is not None and evaluation.same_accuracy
        return gains_of(self._runs, evaluation.predictions[0] if known else None)

    def _paper(self) -> dict[str, Any] | None:
        config = self._runs[0].config
        return paper_results(config.dataset, config.model, config.num_students, config.objective, config.widths)


def _chapter(key: str, title: str, parts: Iterable[str], *, is_open: bool = False) -> Chapter:
    return Chapter(key, title, "\n".join(parts), is_open)
