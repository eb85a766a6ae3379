"""The benchmark of precisions: what its steps differ in, and what the command writes."""

import json
import sys

import pytest

from bench.readme import steps
from bench.step import precisions
from bench.step.problem import StepProblem
from oekd_fast.layers.fast_module import FastModule


def test_the_compared_steps_differ_in_precision_and_norms_only(one_thread):
    steps = precisions.variants(StepProblem(num_students=2, batch_size=4, image_size=8, batches=2))
    fused = {
        name: {m.fused for m in step.family.modules() if isinstance(m, FastModule)} for name, step in steps.items()
    }
    assert all(values == {name != "bf16, PyTorch's norms"} for name, values in fused.items())
    for step in steps.values():
        step.step()
    losses = {name: step.take_loss() for name, step in steps.items()}
    family = [losses[name] for name in ("fp32", "bf16", "bf16, PyTorch's norms")]
    assert family == pytest.approx([family[0]] * 3, rel=0.02)
    assert losses["largest alone, bf16"] == pytest.approx(losses["largest alone, fp32"], rel=0.02)
    assert len(set(losses.values())) == len(losses)


@pytest.mark.slow
def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys, threads):
    file = tmp_path / "out.json"
    small = StepProblem(num_students=2, batch_size=4, image_size=8, batches=2)
    monkeypatch.setattr(precisions, "StepProblem", lambda **given: small)
    monkeypatch.setattr(sys, "argv", ["precisions", "--seconds", "0", "--json", str(file)])
    precisions.main()
    (result,) = json.loads(file.read_text())["results"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in result["milliseconds"])
    assert f"--precision auto: {result['automatic_precision']}, since " in printed


def test_the_table_compares_the_family_with_fp32(tmp_path):
    times = {"fp32": 600.0, "bf16": 400.0, "largest alone, bf16": 100.0}
    result = {
        "problem": {"model": "resnet20", "num_students": 5, "batch_size": 128},
        "milliseconds": {name: {"median": ms, "lower": ms - 9, "upper": ms + 9} for name, ms in times.items()},
    }
    machine = {"processor": "a CPU", "threads": 2, "cpu_capability": "AVX512", "torch": "2.13.0", "commit": "0123"}
    report = {"what": "a step", "machine": machine, "results": [result]}
    (tmp_path / "precision_step_x_cpu.json").write_text(json.dumps(report))
    rows = steps.precisions(tmp_path, "precision_step_*_cpu.json").splitlines()[2:]
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[:3]] == [
        ["fp32", "600", "591 to 609", "1.00"],
        ["bf16", "400", "391 to 409", "1.50"],
        ["largest alone, bf16", "100", "91 to 109", "-"],
    ]
    assert "resnet20 x 5, B = 128" in rows[-1] and "a CPU" in rows[-1]
    assert steps.precisions(tmp_path, "nothing_*.json") == ""
