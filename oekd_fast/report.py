"""Report of finished runs: an HTML page and its pictures, ``python -m oekd_fast.report RUN [RUN ...]``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

try:
    from rich.console import Console
except ImportError as error:
    raise ImportError("the report needs more packages: pip install 'oekd_fast[train]'") from error

from oekd_fast.common.files import write_atomically
from oekd_fast.common.text import print_line, replace_unencodable_output
from oekd_fast.config.options import parse


@dataclass(frozen=True)
class ReportConfig:
    """Write an HTML page with the results of finished runs."""

    runs: tuple[Path, ...] = field(metadata={"metavar": "RUN [RUN ...]"})
    """Run folders. Runs that differ in the seed only are averaged, others get their own section."""
    output: Path | None = field(default=None, metadata={"unset": "report/ in the first run folder"})
    """Folder for index.html and its pictures."""
    data_dir: Path | None = field(default=None, metadata={"unset": "where the runs found it"})
    """Folder that holds the data set now."""
    images: int = 6
    """Number of test images for which Grad-CAM is shown; 0 for none."""
    explain: Literal["predicted", "true"] = "predicted"
    """Class that Grad-CAM explains."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, ...; auto is cuda if it is available, else cpu."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("runs: expected at least one run folder, got none")
        if self.images < 0:
            raise ValueError(f"images: expected an integer >= 0, got {self.images}")
        if self.explain not in ("predicted", "true"):
            raise ValueError(f"explain: expected predicted or true, got {self.explain!r}")

    @property
    def folder(self) -> Path:
        """The folder that the page is written to."""
        return self.output if self.output is not None else self.runs[0] / "report"


def report(config: ReportConfig) -> Path:
    """Write the page that `config` describes, and its pictures beside it.

    Returns:
        The path of the page, ``index.html``.

    Raises:
        ReportError: a folder does not hold a finished run.
        ValueError: the device is unavailable.
        OSError: a file cannot be written.
    """
    # These import torch, which --help does not need.
    from oekd_fast.reporting.finished_runs import group_runs, read_run
    from oekd_fast.reporting.page import page
    from oekd_fast.reporting.section import Section
    from oekd_fast.runs.device_data import choose_device, dataset_of

    device = choose_device(config.device)
    groups = group_runs([read_run(path) for path in config.runs])
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for number, group in enumerate(groups, start=1):
        prefix = f"{number}_" if len(groups) > 1 else ""

        def keep(name: str, content: bytes, prefix: str = prefix) -> None:
            write_atomically(folder / f"{prefix}{name}.png", content)

        section = Section(group, dataset_of, config.data_dir, config.images, config.explain, device, keep)
        sections.append(section.html())
    title = groups[0].title if len(groups) == 1 else f"{len(groups)} families of students"
    path = folder / "index.html"
    write_atomically(path, page(title, sections).encode())
    return path


def main() -> int:
    """Run the command line and return the exit status."""
    replace_unencodable_output()
    console = Console()
    try:
        path = report(ReportConfig(**parse(ReportConfig, "python -m oekd_fast.report", sys.argv[1:])))
    except (ValueError, OSError) as error:
        print_line(Console(stderr=True), f"error: {error}")
        return 1
    print_line(console, f"Report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
