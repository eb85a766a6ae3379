"""The chapter on settings and versions of each run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.reporting import page
from oekd_fast.reporting.finished_runs import Run


def settings_chapter(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the facts of each run, the settings that differ from their defaults, and all settings."""
    for run in runs:
        settings, defaults = run.config.as_dict(), TrainConfig().as_dict()
        changed = {name: value for name, value in settings.items() if value != defaults[name]}
        headings = ("field", "value")
        content = (
            page.paragraph("Of the settings, those that differ from their defaults are shown first.")
            + page.table(headings, (_facts(run) | changed).items(), of_texts=True)
            + page.details("All settings", page.table(headings, settings.items(), of_texts=True))
        )
        yield content if len(runs) == 1 else page.details(f"Seed {run.config.seed}: {run.path}", content)


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
