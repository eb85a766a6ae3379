"""The overview of several groups of runs: one row for each family."""

from __future__ import annotations

from collections.abc import Sequence

from oekd_fast.common.spread import spread
from oekd_fast.figures.sizes import of_students
from oekd_fast.reporting import page
from oekd_fast.reporting.finished_runs import Group


def overview(groups: Sequence[Group]) -> str:
    """Return a table of the groups with links to their parts of the page."""
    rows = []
    for number, group in enumerate(groups, start=1):
        summaries = [run.summary for run in group.runs]
        accuracies = of_students(summaries, "accuracy")
        rows.append(
            (
                page.link(f"#{number}-group", group.title),
                ", ".join(str(run.config.seed) for run in group.runs),
                summaries[0]["test_images"],
                spread([summary["ensemble_accuracy"] for summary in summaries]),
                accuracies[0],
                accuracies[-1],
                "; ".join(group.differences) or "-",
            )
        )
    headings = ("family", "seeds", "test images", "ensemble %", "student 1 %", "smallest student %", "trained with")
    return page.table(headings, rows)
