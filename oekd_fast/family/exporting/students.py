"""Export of students and of whole families: what `Student.export` and `StudentEnsemble.export` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.family.exporting.contents import ImageInput, description
from oekd_fast.family.exporting.export import ExportedFile, export_network
from oekd_fast.family.exporting.networks import FamilyOutputs
from oekd_fast.family.metadata import Normalisation, StudentMetadata
from oekd_fast.family.student import Student


def export_student(
    student: Student,
    path: Path | str,
    *,
    preprocessing: bool,
    batch: int | None,
    image_shape: tuple[int, int, int] | None,
    normalisation: Normalisation | None,
    classes: Sequence[str] | None,
    metadata: StudentMetadata | None = None,
) -> ExportedFile:
    """Export a student; see `Student.export`. With `metadata`, the file holds that too."""
    images = _input(preprocessing, batch, image_shape, normalisation)
    entries = description(images, classes=_names(classes), metadata=metadata)
    network = Student(student.base, student.branch)  # without what a loaded student holds besides
    return export_network(network, path, images, entries=entries)


def export_family(
    family: StudentEnsemble,
    path: Path | str,
    *,
    preprocessing: bool,
    batch: int | None,
    image_shape: tuple[int, int, int] | None,
    normalisation: Normalisation | None,
    classes: Sequence[str] | None,
) -> ExportedFile:
    """Export all students of a family and their ensemble; see `StudentEnsemble.export`."""
    images = _input(preprocessing, batch, image_shape, normalisation)
    numbers = [j + 1 for j in family.members]
    network = FamilyOutputs([family.base], family.branches, numbers, family.gate)
    more = {"model": family.architecture.name, "num_students": family.num_students, "students": numbers}
    entries = description(images, classes=_names(classes), more=more)
    return export_network(network, path, images, outputs=network.names, entries=entries)


def _input(
    preprocessing: bool,
    batch: int | None,
    image_shape: tuple[int, int, int] | None,
    normalisation: Normalisation | None,
) -> ImageInput:
    if image_shape is None:
        raise ValueError("image_shape: expected (C, H, W) of the images, got None")
    if preprocessing and normalisation is None:
        raise ValueError(
            "normalisation: expected mean and std of the images, got None; preprocessing=False exports a network of "
            "images that are normalised"
        )
    return ImageInput(tuple(image_shape), batch, normalisation if preprocessing else None)


def _names(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if classes is None else tuple(map(str, classes))
