"""Report of finished runs: an HTML page and its pictures, ``python -m oekd_fast.report RUN [RUN ...]``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

try:
    from rich.console import Console
except ImportError as error:
    raise ImportError("the report needs more packages: pip install 'oekd_fast[train]'") from error

from oekd_fast.common.files import make_folder_below, write_atomically
from oekd_fast.common.text import print_line, replace_unencodable_output
from oekd_fast.config.options import parse
from oekd_fast.runs.console import RunConsole, finish_output


@dataclass(frozen=True)
class ReportConfig:
    """Write an HTML page with the results of finished runs."""

    runs: tuple[Path, ...] = field(metadata={"metavar": "RUN [RUN ...]"})
    """Run folders. Runs that differ in the seed only are averaged, others get their own section."""
    output: Path | None = field(default=None, metadata={"unset": "report/ in the first run folder"})
    """Folder for index.html and its pictures."""
    with_data: bool = False
    """Load the data set that config.json names: a folder of this machine, or a download from the hub."""
    data_dir: Path | None = field(default=None, metadata={"unset": "none is read"})
    """Folder that holds the data set now, in place of the one that config.json names."""
    model: str | None = field(default=None, metadata={"unset": "none is run"})
    """Function that builds the networks, FILE.py:FUNCTION, of runs whose model is one."""
    images: int = 6
    """Number of test images for which Grad-CAM is shown; 0 for none."""
    explain: Literal["predicted", "true"] = "predicted"
    """Class that Grad-CAM explains."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, mps, ...; auto is cuda if it is available, else cpu."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("runs: expected at least one run folder, got none")
        object.__setattr__(self, "runs", tuple(Path(os.path.expanduser(path)) for path in self.runs))
        for name in ("output", "data_dir"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(os.path.expanduser(path)))
        if self.images < 0:
            raise ValueError(f"images: expected an integer >= 0, got {self.images}")
        if self.explain not in ("predicted", "true"):
            raise ValueError(f"explain: expected predicted or true, got {self.explain!r}")

    @property
    def folder(self) -> Path:
        """The folder that the page is written to."""
        return self.output if self.output is not None else self.runs[0] / "report"


def report(config: ReportConfig, console: Console | None = None) -> Path:
    """Write the page that `config` describes, and its pictures beside it.

    Run folders may come from others. Nothing outside them is opened but the data set, and that only with
    `config.with_data` or `config.data_dir`; the digits, which are part of scikit-learn, are always loaded. Without the
    data set, the page lacks the parts that need it. Code of a user's network runs with `config.model` only.

    Args:
        config: the runs, and what is shown.
        console: where a line says which parts are missing; standard output by default.

    Returns:
        The path of the page, ``index.html``.

    Raises:
        ReportError: a folder does not hold a finished run, or one of its files is damaged.
        ValueError: the device is unavailable.
        OSError: a file cannot be read or written, or the folder of the page is a link.
    """
    # These import torch, which --help does not need.
    from oekd_fast.reporting.document import document
    from oekd_fast.reporting.evaluation import Source
    from oekd_fast.reporting.finished_runs import group_runs, read_run
    from oekd_fast.reporting.overview import overview
    from oekd_fast.reporting.pictures import Pictures
    from oekd_fast.reporting.section import Section
    from oekd_fast.runs.device_data import choose_device, dataset_of

    console = console or Console()
    source = Source(dataset_of, config.data_dir, config.with_data, choose_device(config.device), config.model)
    groups = group_runs([read_run(path) for path in config.runs])
    folder = _make_folder(config.folder)
    parts = []
    for number, group in enumerate(groups, start=1):
        prefix = f"{number}_" if len(groups) > 1 else ""

        def keep(name: str, content: bytes, prefix: str = prefix) -> None:
            write_atomically(folder / f"{prefix}{name}", content)

        pictures = Pictures(keep, lambda line: print_line(console, line))
        parts.append(Section(group, source, config.images, config.explain, folder, pictures).part())
    title, above = groups[0].title, ""
    if len(groups) > 1:
        title, above = f"{len(groups)} families of students", overview(groups)
    path = folder / "index.html"
    write_atomically(path, document(title, parts, above).encode())
    return path


def _make_folder(folder: Path) -> Path:
    """Create `folder`, which may not be a link: the run folder of a stranger may hold one that leads elsewhere."""
    if folder.name in ("", ".."):  # the current folder, or one above it
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    return make_folder_below(folder.parent, folder.name)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m oekd_fast.report") -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: the command line; that of the process by default.
        prog: the command, for usage and errors.
    """
    replace_unencodable_output()
    console, errors = RunConsole(), RunConsole(stderr=True)
    try:
        path = report(ReportConfig(**parse(ReportConfig, prog, arguments)), console)
        print_line(console, f"Report: {path}")
    except (ImportError, ValueError, OSError) as error:
        print_line(errors, f"error: {error}")
        return 1
    finally:
        finish_output(console, errors)
    return 0


if __name__ == "__main__":
    sys.exit(main())
