"""Fixtures of the tests of latency: the students of the smallest family."""

import pytest

from oekd_fast import StudentEnsemble
from oekd_fast.family.saved import LoadedStudent, Normalisation, StudentMetadata, load_student, save_student
from oekd_fast.latency.onnx import TooSlowError

from ..support.forked_runs import SMALLEST


@pytest.fixture(scope="session")
def saved_family(tmp_path_factory) -> tuple[StudentEnsemble, list[LoadedStudent]]:
    """A family of two with a gate, and its students as they are loaded from their files."""
    folder = tmp_path_factory.mktemp("students")
    ensemble = StudentEnsemble(SMALLEST, 2, 4, gated=True).eval()
    students = []
    for j in ensemble.members:
        metadata = StudentMetadata.of(
            ensemble, j, image_size=8, classes=tuple("abcd"), normalisation=Normalisation((0.5,) * 3, (0.25,) * 3)
        )  # fmt: skip
        path = save_student(ensemble.student(j), folder / f"student_{j + 1}", metadata, SMALLEST)
        students.append(load_student(path, SMALLEST))
    return ensemble, students


@pytest.fixture
def students(saved_family) -> list[LoadedStudent]:
    return saved_family[1]


@pytest.fixture
def without_onnx(monkeypatch) -> None:
    """Measure as if there were no time to export, which takes seconds."""

    def export_in_time(networks, seconds, stopping):
        raise TooSlowError("exporting takes too long")

    monkeypatch.setattr("oekd_fast.latency.measure.export_in_time", export_in_time)
