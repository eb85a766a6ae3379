"""Run folders and students that version 0.1.0 wrote (commit 161fb4b) still load, report and resume.

`finished` and `stopped` were trained with the same options on one intra-op thread; `stopped` ended after epoch 1 of 3.
"""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from oekd_fast import load_student, register_architecture
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.models import registry
from oekd_fast.report import ReportConfig, report
from oekd_fast.reporting.finished_runs import read_run
from oekd_fast.runs.run import train

from ..support.older_runs import RUNS, TINY

FOLDERS = ("students", "baselines")


@pytest.fixture(autouse=True)
def tiny_architecture(monkeypatch, one_thread):
    monkeypatch.setattr(registry, "_ARCHITECTURES", dict(registry._ARCHITECTURES))
    register_architecture(TINY)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("j", [1, 2])
def test_students_load(folder, j):
    student = load_student(RUNS / "finished" / folder / f"student_{j}")
    assert student.metadata.oekd_fast_version == "0.1.0" and student.metadata.index == j
    logits = student(student.preprocess(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)))
    assert logits.shape == (2, 10) and logits.isfinite().all()


@pytest.mark.slow
def test_a_finished_run_is_read_and_reported(tmp_path):
    run = read_run(RUNS / "finished")
    stored = json.loads((RUNS / "finished/config.json").read_text())
    assert (run.config.as_dict() | {"output_dir": "finished"}).items() >= stored.items()
    page = report(ReportConfig((RUNS / "finished",), output=tmp_path, images=2)).read_text()
    assert "14.21" in page and "41.67" in page  # student 1: accuracy, relative gain
    assert (tmp_path / "grad_cam.png").is_file()


@pytest.mark.slow
def test_a_stopped_run_resumes_to_what_the_finished_run_has(tmp_path):
    shutil.copytree(RUNS / "stopped", tmp_path / "run")
    config = replace(read_run(RUNS / "finished").config, output_dir=tmp_path / "run", resume=True, latency="off")
    summary = train(config)
    expected = json.loads((RUNS / "finished" / "summary.json").read_text())
    assert [s["parameters"] for s in summary["students"]] == [s["parameters"] for s in expected["students"]]
    for folder in FOLDERS:
        for j in (1, 2):
            weights, wanted = (
                load_file(path / folder / f"student_{j}.safetensors") for path in (tmp_path / "run", RUNS / "finished")
            )
            for name, tensor in wanted.items():
                # The rest of the training ran on another machine's vector units.
                torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4, msg=f"{folder} {j} {name}")


def test_another_training_is_refused(tmp_path):
    shutil.copytree(RUNS / "stopped", tmp_path / "run")
    config = replace(read_run(RUNS / "finished").config, output_dir=tmp_path / "run", resume=True, learning_rate=0.2)
    with pytest.raises(ValueError, match="learning_rate: expected 0.1, got 0.2"):
        train(config)


def test_a_field_that_the_old_run_does_not_know_has_its_default():
    stored = json.loads((RUNS / "finished" / "config.json").read_text())
    assert set(stored) <= {*TrainConfig().as_dict()}
