"""The chapter on the size of students on disk and on their latency."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from oekd_fast.common.quantities import bytes_text
from oekd_fast.common.spread import spread
from oekd_fast.figures.latency import latency_figure
from oekd_fast.figures.sizes import of_students
from oekd_fast.latency.family import FamilyLatency
from oekd_fast.latency.result import MARK, Latency, milliseconds
from oekd_fast.reporting import page
from oekd_fast.reporting.finished_runs import Run
from oekd_fast.reporting.names import ENSEMBLE, colored_name
from oekd_fast.reporting.pictures import Pictures


def latency_parts(runs: Sequence[Run], picture: Pictures) -> Iterator[str]:
    """Yield the chapter as HTML; nothing if no run has measured latency.

    The latency of runs that differ in the seed only is that of the first run that has it.

    Args:
        runs: runs that differ in the seed only.
        picture: draws pictures.
    """
    found = ((run, FamilyLatency.of(run.summary)) for run in runs)
    run, latency = next(((run, latency) for run, latency in found if latency is not None), (None, None))
    if run is None:
        return
    yield page.paragraph(_measured_how(run, len(runs) > 1))
    yield _table(run, latency)
    remarks = defaultdict(list)
    for setting in latency.settings:
        for remark in latency.remarks(setting):
            remarks[remark].append(str(setting))
    if remarks:
        sentences = (f"{remark} ({'; '.join(settings)})." for remark, settings in remarks.items())
        yield page.notes((f"{MARK} is a smaller student that is not measurably faster.", *sentences))
    summaries = [run.summary for run in runs]
    accuracies = [value.mean for value in of_students(summaries, "accuracy")]
    ensemble = spread([summary["ensemble_accuracy"] for summary in summaries]).mean
    panels = {f"batch {batch}": latency.curves(settings) for batch, settings in latency.batches.items()}
    yield picture("latency", lambda: latency_figure(accuracies, ensemble, panels), "Test accuracy against latency")
    facts = run.summary.get("latency") or {}
    for note in facts.get("notes", ()):
        yield page.paragraph(note + ".")


def _measured_how(run: Run, several: bool) -> str:
    facts = run.summary.get("latency") or {}
    of_seed = f" Measured in the run of seed {run.config.seed}." if several else ""
    shape = " x ".join(map(str, facts.get("image_shape", ())))
    images = f" of shape {shape}" if shape else ""
    machine = facts.get("machine", {})
    where = ", ".join(str(machine[name]) for name in ("processor", "gpu", "system") if machine.get(name))
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "onnxruntime") if machine.get(name))
    return (
        f"Milliseconds of a call from uint8 images{images} in memory to logits: median, and in parentheses the 95th "
        f"percentile. The networks took turns.{of_seed} {'; '.join(filter(None, (where, versions)))}."
    )


def _table(run: Run, latency: FamilyLatency) -> str:
    headings = ["network", "file", *map(str, latency.settings)]
    rows = [
        [
            colored_name(f"student {student['index']}"),
            _size(student),
            *(_cell(of_student[setting]) for setting in latency.settings),
        ]
        for student, of_student in zip(run.summary["students"], latency.students, strict=True)
    ]
    ensemble = run.summary.get("ensemble")
    if ensemble is not None and latency.ensemble:
        cells = (latency.ensemble.get(setting) for setting in latency.settings)
        rows.append(
            [colored_name(ENSEMBLE), _size(ensemble), *("-" if cell is None else _cell(cell) for cell in cells)]
        )
    return page.table(headings, rows)


def _cell(latency: Latency) -> str:
    return f"{latency.text} ({milliseconds(latency.p95_ms)})"


def _size(network: dict) -> str:
    size = network.get("file_bytes")
    return "-" if size is None else bytes_text(size)
