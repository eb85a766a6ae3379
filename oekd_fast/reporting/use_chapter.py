"""The chapter that shows how to use each student: its files, and lines of code and commands to copy."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from oekd_fast.common.files import read_regular
from oekd_fast.common.quantities import bytes_text
from oekd_fast.common.text import shortened
from oekd_fast.family.metadata import StudentMetadata, parse_metadata
from oekd_fast.models.model_sources import runs_code
from oekd_fast.reporting import page
from oekd_fast.reporting.finished_runs import Run
from oekd_fast.reporting.run_files import ReportError, check_inside

_LARGEST_METADATA = 2**26  # bytes
_SHOWN_CLASSES = 3
_EXPORTED = (".onnx", "_int8.onnx", ".pt2")


def use_chapter(runs: Sequence[Run], folder: Path) -> Iterator[str]:
    """Yield the chapter as HTML.

    Of several runs, each student is that of the run in which it has the highest validation accuracy.

    Args:
        runs: runs that differ in the seed only.
        folder: folder of the page, from which links lead to the files.
    """
    several = " Each student is that of the seed with its highest validation accuracy." if len(runs) > 1 else ""
    yield page.paragraph(f"A click on a box selects its text.{several}")
    for j in range(len(runs[0].summary["students"])):
        run = max(runs, key=lambda run, j=j: _validation(run)["accuracy"][j])
        yield _of_student(run, j, folder, len(runs) > 1, is_open=j == 0)
    if runs[0].summary.get("ensemble") is not None:
        run = max(runs, key=lambda run: _validation(run)["ensemble_accuracy"])
        yield page.details(
            f"Ensemble{_seed(run, len(runs) > 1)}: {run.summary['ensemble_accuracy']:.2f} %",
            page.paragraph("One file with the outputs of all students and their mean:")
            + page.code(f"python -m oekd_fast.export {_run_arguments(run)} --students ensemble")
            + _links(run, "ensemble", [], folder),
        )


def _of_student(run: Run, j: int, folder: Path, with_seed: bool, *, is_open: bool) -> str:
    student = run.summary["students"][j]
    title = f"Student {j + 1}{_seed(run, with_seed)}: {student['parameters']:,} parameters, {student['accuracy']:.2f} %"
    try:
        saved = run.saved("students")
    except ReportError as error:  # a link that leads elsewhere
        return page.details(title, page.note(str(error)), is_open=is_open)
    if not saved:
        return page.details(title, page.note("The run has no weights of all students."), is_open=is_open)
    weights = saved[j]
    content = (
        _links(run, f"student_{j + 1}", [weights, weights.with_suffix(".json")], folder)
        + page.code(_python(run, weights, _metadata(weights)))
        + page.code(
            f"python -m oekd_fast.export {_run_arguments(run)} --students {j + 1}\n"
            "# the most accurate network that is not larger:\n"
            f"python -m oekd_fast.pick {_path(run.path)} --max-parameters {student['parameters']}"
        )
    )
    return page.details(title, content, is_open=is_open)


def _python(run: Run, weights: Path, metadata: StudentMetadata | None) -> str:
    """Return the lines that load a student and predict the classes of images."""
    architecture = f", architecture={run.config.model!r}" if runs_code(run.config.model) else ""
    lines = [
        "from oekd_fast import load_student",
        "",
        f"student = load_student({str(_absolute(weights.with_suffix('')))!r}{architecture})",
    ]
    shape, classes = "", []
    if metadata is not None:
        size = metadata.image_size
        shape = f"  # uint8 [B, {metadata.in_channels}, {size}, {size}]"
        names = ", ".join(repr(shortened(name, 24)) for name in metadata.classes[:_SHOWN_CLASSES])
        more = ", ..." if len(metadata.classes) > _SHOWN_CLASSES else ""
        classes = [f"# {metadata.num_classes} classes: {names}{more}"]
    lines += [
        f"logits = student(student.preprocess(images)){shape}",
        *classes,
        "names = [student.metadata.classes[index] for index in logits.argmax(dim=1).tolist()]",
    ]
    return "\n".join(lines)


def _metadata(weights: Path) -> StudentMetadata | None:
    """Return the metadata beside the file `weights`; None if they are damaged."""
    try:
        return parse_metadata(read_regular(weights.with_suffix(".json"), _LARGEST_METADATA))[0]
    except (OSError, ValueError):
        return None


def _links(run: Run, name: str, files: Sequence[Path], folder: Path) -> str:
    """Return links to `files` and to the exported files of the network `name` that exist."""
    exported = (run.path / "exported" / f"{name}{suffix}" for suffix in _EXPORTED)
    found = [*files, *(file for file in exported if _is_inside(file, run.path))]
    items = ", ".join(
        f"{page.link(_address(file, folder), file.name)} ({bytes_text(file.stat().st_size)})" for file in found
    )
    return page.paragraph(page.Html(f"Files: {items}")) if items else ""


def _is_inside(file: Path, folder: Path) -> bool:
    """Return whether `file` is a file in `folder`, to which no link leads from outside."""
    try:
        check_inside(file, folder)
    except ReportError:
        return False
    return file.is_file()


def _address(file: Path, folder: Path) -> str:
    """Return the address of `file` relative to a page in `folder`, or its absolute one on another drive."""
    try:
        path = os.path.relpath(file.absolute(), folder.absolute())
    except ValueError:  # another drive of Windows
        return file.absolute().as_uri()
    return quote(os.fsencode(path.replace(os.sep, "/")))


def _run_arguments(run: Run) -> str:
    model = f" --model {shlex.quote(run.config.model)}" if runs_code(run.config.model) else ""
    return _path(run.path) + model


def _path(path: Path) -> str:
    return shlex.quote(str(_absolute(path)))


def _absolute(path: Path) -> Path:
    """Return an absolute path without following links, so that lines work in any folder."""
    return Path(os.path.abspath(path))


def _seed(run: Run, shown: bool) -> str:
    return f", seed {run.config.seed}" if shown else ""


def _validation(run: Run) -> dict:
    return run.histories["ensemble"][run.summary["selected_epoch"] - 1]["validation"]
