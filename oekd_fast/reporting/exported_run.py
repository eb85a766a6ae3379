"""Files for other programs from a finished run: its students and its ensemble, and their accuracy in int8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oekd_fast.common.files import write_atomically
from oekd_fast.data import AnySplit, ImageDataset, centre
from oekd_fast.family.exporting import onnx_format
from oekd_fast.family.exporting.contents import ImageInput, description
from oekd_fast.family.exporting.export import FORMATS, ExportedFile, Run, export_network
from oekd_fast.family.exporting.int8 import quantised
from oekd_fast.family.exporting.networks import ENSEMBLE, family_outputs
from oekd_fast.family.saved import LoadedStudent, load_student
from oekd_fast.family.student import Student
from oekd_fast.reporting.evidence import function_of, gate_of
from oekd_fast.reporting.finished_runs import Run as FinishedRun
from oekd_fast.reporting.run_files import ReportError

_BATCH = 256
_CALIBRATION_BATCH = 64


@dataclass(frozen=True)
class Exportable:
    """A network of a run.

    Args:
        name: name of its files, without suffix.
        network: module from normalised images to its outputs.
        outputs: names of the outputs; the last one is evaluated.
        student: a student of the run, which knows the images.
        entries: what the files say about it.
    """

    name: str
    network: nn.Module
    outputs: tuple[str, ...]
    student: LoadedStudent
    entries: dict[str, Any]

    def images(self, batch: int | None, preprocessing: bool) -> ImageInput:
        """Return the images that a file takes; see `RunExporter`."""
        metadata = self.student.metadata
        shape = (metadata.in_channels, metadata.image_size, metadata.image_size)
        return ImageInput(shape, batch, metadata.normalisation if preprocessing else None)

    def export(self, path: Path, batch: int | None = None, preprocessing: bool = True) -> ExportedFile:
        """Write the network in float32 to `path`, whose suffix is the format.

        Raises:
            ImportError, ExportError, ValueError, OSError: see `export_network`.
        """
        images = self.images(batch, preprocessing)
        entries = description(images, metadata=self.student.metadata, more=self.entries)
        return export_network(self.network, path, images, outputs=self.outputs, entries=entries)


@dataclass(frozen=True)
class Exported:
    """A file, and what was measured of it.

    Args:
        path: the file.
        size: its size in bytes.
        difference: largest difference between its outputs and those of the network, relative to the largest logit;
            None for int8, which is not meant to compute the same.
        accuracy: accuracy of the file on the test images of the run, in percent; None if it was not measured.
    """

    path: Path
    size: int
    difference: float | None
    accuracy: float | None


def networks_of(run: FinishedRun, names: Sequence[str] | None = None, model: str | None = None) -> list[Exportable]:
    """Load networks of a run on the CPU.

    Args:
        run: a finished run.
        names: numbers of students from 1, and "ensemble"; None for all students.
        model: function that builds the networks if the model of the run is one, such as "nets.py:make"; its code runs.

    Raises:
        ReportError: weights are missing, `names` has a student that the run does not have, or the ensemble of the run
            cannot be built from its students.
        ValueError: a file is damaged.
    """
    paths = run.saved("students")
    if not paths:
        count = len(run.summary["students"])
        raise ReportError(f"{run.path / 'students'}: expected weights of {count} students, got too few")
    if names is None:
        names = [str(number) for number in range(1, len(paths) + 1)]
    for name in names:
        if name != ENSEMBLE and not 1 <= int(name) <= len(paths):
            raise ReportError(f"students: expected numbers in 1..{len(paths)} or {ENSEMBLE}, got {name}")
    distinct = dict.fromkeys(name if name == ENSEMBLE else int(name) for name in names)
    model = function_of(run, model)
    return [_ensemble(run, paths, model) if name == ENSEMBLE else _student(paths[name - 1], model) for name in distinct]


def _student(path: Path, model: str | None) -> Exportable:
    student = load_student(path, model)
    return Exportable(path.stem, Student(student.base, student.branch), ("logits",), student, {})


def _ensemble(run: FinishedRun, paths: Sequence[Path], model: str | None) -> Exportable:
    objective = run.config.family_objective
    if objective.alone:
        raise ReportError(
            f"students: expected numbers, got {ENSEMBLE}; that of the objective {run.config.objective} is made of "
            "networks that the run does not keep"
        )
    students = [load_student(path, model) for path in paths]
    gate = gate_of(run, students)
    if objective.gated and gate is None:
        raise ReportError(f"{paths[0].parent}: expected the gate of the ensemble, gate.safetensors, which is missing")
    network = family_outputs(students, gate)
    first = students[0].metadata
    entries = {
        "model": first.model,
        "student": ENSEMBLE,
        "num_students": first.num_students,
        "students": list(network.numbers),
        "parameters": sum(p.numel() for p in network.parameters()),
        "accuracy": run.summary["ensemble_accuracy"],
    }
    return Exportable(ENSEMBLE, network, network.names, students[0], entries)


@dataclass(frozen=True)
class RunExporter:
    """Writes networks of a run to files of one folder.

    Args:
        folder: folder of the files, which exists.
        batch: number of images of each call; None for any number.
        preprocessing: whether the files take pixels and normalise them.
    """

    folder: Path
    batch: int | None
    preprocessing: bool

    def write(self, network: Exportable, suffix: str, dataset: ImageDataset | None = None) -> Exported:
        """Write a file in float32, and measure its accuracy if `dataset` is given.

        Raises:
            ImportError, ExportError, OSError: see `export_network`.
        """
        path = self.folder / f"{network.name}{suffix}"
        file = network.export(path, self.batch, self.preprocessing)
        accuracy = (
            None if dataset is None else self._accuracy(FORMATS[suffix].load(path.read_bytes()), network, dataset)
        )
        return Exported(path, file.size, file.difference, accuracy)

    def write_int8(self, network: Exportable, exported: Exported, dataset: ImageDataset, count: int) -> Exported:
        """Write an ONNX file in int8, ``<name>_int8.onnx``, with its accuracy in its metadata.

        Args:
            exported: the file in float32, with its accuracy.
            dataset: data set of the run.
            count: number of training images for the calibration, drawn at random with a fixed seed.
        """
        rows = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))[:count]
        size = self.batch or _CALIBRATION_BATCH
        calibration = (self._inputs(network, dataset, dataset.train, of_batch) for of_batch in _filled(rows, size))
        content = quantised(exported.path.read_bytes(), calibration)
        accuracy = self._accuracy(onnx_format.load(content), network, dataset)
        entries = {
            "accuracy": accuracy,
            "float32_accuracy": exported.accuracy,
            "quantization": "int8, static, weights per channel, QuantizeLinear and DequantizeLinear",
            "calibration_images": len(rows),
        }
        content = onnx_format.with_entries(content, entries)
        path = self.folder / f"{network.name}_int8.onnx"
        write_atomically(path, content)
        return Exported(path, len(content), None, accuracy)

    def _inputs(self, network: Exportable, dataset: ImageDataset, split: AnySplit, rows: Tensor) -> Tensor:
        """Return the images of `rows` as the files take them."""
        pixels = centre(split.gather(rows), dataset.augmentation).contiguous()
        return pixels if self.preprocessing else network.student.preprocess(pixels)

    def _accuracy(self, run: Run, network: Exportable, dataset: ImageDataset) -> float:
        """Return the share of the test images that the last output of a file classifies correctly, in percent."""
        labels, correct = dataset.test.labels.cpu(), 0
        for start, rows in enumerate(_filled(torch.arange(len(labels)), self.batch or _BATCH)):
            *_, logits = run(self._inputs(network, dataset, dataset.test, rows))
            of_batch = labels[start * len(rows) :][: len(rows)]
            correct += int((logits.argmax(dim=1)[: len(of_batch)] == of_batch).sum())
        return round(100.0 * correct / len(labels), 4)


def _filled(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Yield `rows` in batches of `size`; a last batch that is not full repeats its last row."""
    for batch in rows.split(size):
        yield torch.cat((batch, batch[-1:].expand(size - len(batch))))
