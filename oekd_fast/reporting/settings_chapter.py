"""The chapter on settings and versions of each run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oekd_fast.reporting import page
from oekd_fast.reporting.finished_runs import Run


def settings_chapter(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a table of facts and of the configuration for each run."""
    for run in runs:
        table = page.table(("field", "value"), (_facts(run) | run.config.as_dict()).items())
        if len(runs) == 1:
            yield table
        else:
            yield page.details(f"Seed {run.config.seed}: {run.path}", table)


def _facts(run: Run) -> dict[str, object]:
    """Return facts of the summary that are shown beside the configuration."""
    summary = run.summary
    facts = {
        "folder": run.path,
        "selected epoch": f"{summary['selected_epoch']} of {len(run.histories['ensemble'])}",
        "seconds": summary["seconds"],
        "images per second, family": summary.get("images_per_second", "-"),
        "trained on": summary.get("device", "-"),
    }
    return facts | {f"version of {name}": version for name, version in summary["versions"].items()}
