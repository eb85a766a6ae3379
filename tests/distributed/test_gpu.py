"""Ranks on GPUs: captured steps with NCCL. Needs two devices."""

import pytest
import torch

from oekd_fast.common.checked_json import load_checked

from ..support.launcher import Launched

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def run(arrays, folder, *more):
    options = ["--num-students", "3", "--epochs", "3", "--batch-size", "20", "--validation-fraction", "0.2"]
    options += ["--deterministic", "--device", "cuda", "--latency", "off", "--output-dir", str(folder)]
    launched = Launched(["oekd_fast.train", "--dataset", str(arrays), *options, *more])
    assert launched.wait() == 0, launched.output
    return launched.output, load_checked((folder / "summary.json").read_bytes())


OPTIONS = [(), ("--precision", "bf16"), ("--norms", "global"), ("--student-ranks", "2")]


@pytest.mark.parametrize("more", OPTIONS, ids=str)
def test_captured_steps_train_like_eager_ones(arrays, tmp_path, more):
    output, captured = run(arrays, tmp_path / "captured", *more)
    assert "launched one operation at a time" not in output
    _, eager = run(arrays, tmp_path / "eager", "--no-capture", *more)
    ours, theirs = ([s["accuracy"] for s in summary["students"]] for summary in (captured, eager))
    assert ours == pytest.approx(theirs, abs=10.0)
