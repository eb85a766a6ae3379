"""The external teacher of a run: one that does not fit, one that is missing, one from another run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oekd_fast import load_student
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.saved import Normalisation, StudentMetadata, save_student
from oekd_fast.family.teacher import Teacher
from oekd_fast.runs.run import train

from ..support.engines import make_teacher
from ..support.small_runs import QUIET


@pytest.fixture
def teacher(config, tmp_path) -> Path:
    """An untrained student for three classes of colour images, with maps of three blocks."""
    torch.manual_seed(0)
    family = build_ensemble("resnet20", 1, 3)
    metadata = StudentMetadata.of(
        family, 0, image_size=8, classes="abc", normalisation=Normalisation((0.5,) * 3, (0.2,) * 3)
    )
    return save_student(family.student(0), tmp_path / "teacher", metadata)


def refuse_teacher(config: TrainConfig, error: type[Exception], message: str) -> None:
    """Check that the error comes before any phase, although pre-training does not need the teacher."""
    with pytest.raises(error, match=message):
        train(replace(config, pretrain_epochs=1), QUIET)
    assert not config.output_dir.exists()


@pytest.mark.slow
def test_a_teacher_that_does_not_fit_raises_before_training(config, teacher, monkeypatch):
    chosen = replace(config, objective="kd", teacher=teacher)
    message = f"^teacher: expected 10 classes, as the data set has, got 3 in {teacher}$"
    refuse_teacher(replace(chosen, dataset="digits"), ValueError, message)
    shallow = Teacher(load_student(teacher), ((0.5,) * 3, (0.2,) * 3), (16, 32), 3, 3)
    monkeypatch.setattr(Teacher, "load", lambda path: shallow)
    message = f"^teacher: expected maps of 3 blocks, as resnet20 has, got 2 in {teacher}$"
    refuse_teacher(replace(chosen, objective="fitnets"), ValueError, message)


def test_a_missing_or_damaged_teacher_raises_with_its_path(config, teacher):
    chosen = replace(config, objective="kd", teacher=teacher)
    teacher.write_bytes(teacher.read_bytes()[:-1])
    refuse_teacher(chosen, ValueError, "^teacher: .*teacher.safetensors: damaged")
    teacher.unlink()
    refuse_teacher(chosen, FileNotFoundError, "^teacher: a student needs .*teacher.safetensors, which is missing$")


def test_a_teacher_of_other_classes_or_channels_raises():
    teacher = make_teacher()
    with pytest.raises(ValueError, match="teacher: expected 100 classes, as the data set has, got 10 in a/b"):
        teacher.check_fits(100, 3, "a/b")
    with pytest.raises(ValueError, match="teacher: expected 1 channels of images, as the data set has, got 3"):
        teacher.check_fits(10, 1, "a/b")


@pytest.mark.slow
def test_a_student_of_one_run_teaches_another_run(config, tmp_path):
    first = replace(config, epochs=1)
    train(first, QUIET)
    teacher = first.run_folder / "students/student_1"
    second = replace(first, objective="kd", teacher=teacher, output_dir=tmp_path / "second")
    summary = train(second, QUIET)
    assert len(summary["students"]) == 2
    config = json.loads((tmp_path / "second/config.json").read_text())
    assert config["teacher"] == str(teacher) and config["temperature"] == 4.0
