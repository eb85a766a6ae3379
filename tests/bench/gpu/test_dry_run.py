"""A dry run: the code of every kind of part runs on the CPU, and its results go through every table."""

import json

import pytest
import torch

from bench.gpu import command
from bench.gpu.parts import PARTS, named
from bench.readme import loss as readme_loss
from bench.readme import steps as readme_steps

from .conftest import start_here

pytest.importorskip("triton", reason="the kernels are Triton's")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="bench.gpu itself runs on a GPU"),
]
# The others differ in the network, the sizes or the variants of the step alone.
KINDS = (
    "environment", "compile", "smoke", "step resnet20", "loss", "compiled resnet20", "memcheck", "tests", "feature",
    "norm", "plans", "curves",
)  # fmt: skip


def test_the_parts_of_a_dry_run_are_all_modules():
    assert {module for name in KINDS for module in named(name).modules} == {m for part in PARTS for m in part.modules}


@pytest.mark.slow
def test_a_dry_run_measures_every_kind_of_part(tmp_path, capsys):
    parts = [named(name) for name in KINDS]
    status = command.run(tmp_path, 3600, parts, dry_run=True, start=start_here(tmp_path))
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert [line for line in printed.splitlines() if len(line) > 80 and not line.startswith("written to")] == []
    assert (tmp_path / "log.txt").read_text().replace("\r", "") == printed

    report = json.loads((tmp_path / "report.json").read_text())
    assert "nothing was measured" in report["what"] and report["parts"].keys() == set(KINDS) and report["errors"] == {}
    results = report["parts"]
    assert all(r["right"] for r in results["smoke"].values() if "right" in r)
    assert results["compile"]["ensemble loss"]["kernels"] == 6 and results["compile"]["norms"]["kernels"] == 12
    assert results["memcheck"]["streamed"]["errors"] == 0
    assert results["tests"]["dry run"]["counts"] == {"passed": 2}
    step = results["step resnet20"]["step resnet20 128"]
    names = {"eager", "ours_eager", "ours_captured", "ours_one_stream", "largest_alone"}
    assert step["variants"].keys() == names and not step["reasons"]
    assert step["profiles"].keys() == {"ours_captured", "ours_one_stream", "largest_alone"}
    (size,) = (r for key, r in results["loss"].items() if "copy" not in key)
    assert size["device_ms"].keys() == {"value_and_grad", "differentiable", "eager", "compiled"}
    assert "liger_kernel" in size["skipped"]["liger"] and size["derived"]["value_and_grad"]["share_of_copy"] > 0
    (norm,) = results["norm"].values()
    assert (
        norm["milliseconds_in_graph"].keys() == {"eager", "compiled", "fused"} and norm["bytes"] == 11 * 2 * 3 * 16 * 4
    )
    (plans,) = results["plans"].values()
    assert len(plans["relative"]) == 2 and plans["skipped"] == {}

    # The tables of the report, and the figures that are printed.
    assert "DRY RUN" in printed and "nhwcAddPaddingKernel" in printed and "goal <= 1.5x" in printed
    assert "kernels that pad channels or convert layouts take 50 %" in " ".join(printed.split())
    (tmp_path / "gpu_x.json").write_text(json.dumps(report))
    assert "2 x 10" in readme_loss.on_a_gpu(tmp_path, "gpu_*.json")
    assert readme_steps.training_steps(tmp_path, "none", "gpu_*.json") == ""  # no size of the paper

    # The same command again has nothing left but the environment.
    assert command.run(tmp_path, 3600, parts, dry_run=True, start=start_here(tmp_path)) == 0
    again = capsys.readouterr().out
    assert "-- environment" in again and "-- smoke" not in again
