"""Export of the students of a finished run, ``python -m oekd_fast.export RUN``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

try:
    from rich.console import Console
except ImportError as error:
    raise ImportError("the export of runs needs more packages: pip install 'oekd_fast[train,export]'") from error

from oekd_fast.common.files import make_folder_below
from oekd_fast.common.tables import table_of_columns
from oekd_fast.common.text import plain, print_line, replace_unencodable_output
from oekd_fast.config.options import parse
from oekd_fast.runs.console import RunConsole, finish_output

if TYPE_CHECKING:
    from oekd_fast.reporting.exported_run import Exported

Format = Literal["onnx", "pt2"]
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class ExportConfig:
    """Write students of a finished run as ONNX files or programs."""

    run: Path = field(metadata={"metavar": "RUN"})
    """Run folder."""
    students: tuple[str, ...] | None = field(default=None, metadata={"unset": "all students", "metavar": "N [N ...]"})
    """Numbers of the students, from 1; "ensemble" is one file with the outputs of all students and their mean."""
    format: tuple[str, ...] = field(default=("onnx",), metadata={"metavar": "{onnx,pt2} [{onnx,pt2} ...]"})
    """Formats: an ONNX file, or a program of torch.export."""
    output_dir: Path | None = field(default=None, metadata={"unset": "exported/ in the run folder"})
    """Folder for the files."""
    model: str | None = field(default=None, metadata={"unset": "none is run"})
    """Function that builds the networks of a run with --model FILE.py:FUNCTION; it is code, which runs."""
    batch: int | None = field(default=None, metadata={"unset": "any number"})
    """Number of images of each call."""
    preprocessing: bool = True
    """Take pixels in uint8 and normalise them in the file; without, it takes normalised images in float32."""
    int8: bool = False
    """Also write each ONNX file in int8, calibrated with training images, and measure the accuracy of both files."""
    calibration_images: int = 512
    """Number of training images for the calibration of int8."""
    with_data: bool = False
    """Load the data set that config.json names, for int8: a folder of this machine, or a download from the hub."""
    data_dir: Path | None = field(default=None, metadata={"unset": "none is read"})
    """Folder that holds the data set now, in place of the one that config.json names."""

    def __post_init__(self) -> None:
        for name in ("run", "output_dir", "data_dir"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(os.path.expanduser(path)))
        if self.students is not None:
            object.__setattr__(self, "students", tuple(map(str, self.students)))
        for name in ("format", "students"):
            if getattr(self, name) is not None and not getattr(self, name):
                raise ValueError(f"{name}: expected at least one, got none")
        for form in self.format:
            if form not in get_args(Format):
                raise ValueError(f"format: expected {' or '.join(get_args(Format))}, got {form!r}")
        for student in self.students or ():
            if student != ENSEMBLE and not (student.isascii() and student.isdigit() and int(student) > 0):
                raise ValueError(f"students: expected numbers from 1, or {ENSEMBLE}, got {student!r}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch: expected an integer >= 1, got {self.batch}")
        if self.calibration_images < 1:
            raise ValueError(f"calibration_images: expected an integer >= 1, got {self.calibration_images}")
        if self.int8 and "onnx" not in self.format:
            raise ValueError("int8: expected the format onnx, got " + " ".join(self.format))

    @property
    def folder(self) -> Path:
        """The folder that the files are written to."""
        return self.output_dir if self.output_dir is not None else self.run / "exported"


def export(config: ExportConfig, console: Console | None = None) -> list[Exported]:
    """Write the files that `config` describes, and return what was measured of each.

    The run folder may come from others: the data set that it names is loaded with `config.with_data` or
    `config.data_dir` alone, except for the digits, which are part of scikit-learn.

    Args:
        console: where a line is printed for each file when it is written; standard output by default.

    Raises:
        ReportError: the folder does not hold a finished run with students, or one of its files is damaged.
        ValueError: a student is not one of the run, or the data set is not that of the run.
        ImportError: a package that the format needs is not installed.
        ExportError: a network cannot be exported, or its file computes something else.
        OSError: a file cannot be read or written.
    """
    # These import torch, which --help does not need.
    from oekd_fast.reporting.evidence import check_same_images, data_config
    from oekd_fast.reporting.exported_run import RunExporter, networks_of
    from oekd_fast.reporting.finished_runs import read_run
    from oekd_fast.runs.device_data import dataset_of

    console = console or Console()
    run = read_run(config.run)
    networks = networks_of(run, config.students, config.model)
    dataset = None
    if config.int8:
        dataset = dataset_of(data_config(run.config, config.data_dir, config.with_data))
        check_same_images(dataset, run, networks[0].student)
    exporter = RunExporter(_make_folder(config), config.batch, config.preprocessing)
    files = []
    for network in networks:
        for form in config.format:
            files.append(exporter.write(network, f".{form}", dataset))
            print_line(console, files[-1].path)
            if config.int8 and form == "onnx":
                files.append(exporter.write_int8(network, files[-1], dataset, config.calibration_images))
                print_line(console, files[-1].path)
    return files


def _make_folder(config: ExportConfig) -> Path:
    """Create the folder of the files. In the run folder of a stranger it may be a link that leads elsewhere."""
    if config.output_dir is None:
        return make_folder_below(config.run, config.folder.name)
    config.folder.mkdir(parents=True, exist_ok=True)
    return config.folder


def print_files(console: Console, files: Sequence[Exported]) -> None:
    """Print a table of the files: name, size, largest difference, and accuracy if it was measured."""
    columns = {
        "file": [plain(item.path.name) for item in files],
        "size": [f"{item.size / 1e3:,.1f} kB" for item in files],
        "difference": ["-" if item.difference is None else f"{item.difference:.1e}" for item in files],
    }
    if any(item.accuracy is not None for item in files):
        columns["accuracy %"] = [f"{item.accuracy:.2f}" for item in files]
    table = table_of_columns(columns, ("difference", "size"), console.width)
    if table is not None:
        console.print(table)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m oekd_fast.export") -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: the command line; that of the process by default.
        prog: the command, for usage and errors.
    """
    replace_unencodable_output()
    console, errors = RunConsole(), RunConsole(stderr=True)
    try:
        config = ExportConfig(**parse(ExportConfig, prog, arguments))
        return _export_and_print(config, console, errors)
    except (ImportError, ValueError) as error:
        print_line(errors, f"error: {error}")
        return 1
    finally:
        finish_output(console, errors)


def _export_and_print(config: ExportConfig, console: Console, errors: Console) -> int:
    from oekd_fast.family.exporting.export import ExportError  # imports torch, which --help does not need

    try:
        print_files(console, export(config, console))
    except (ExportError, ImportError, OSError, ValueError) as error:
        print_line(errors, f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
