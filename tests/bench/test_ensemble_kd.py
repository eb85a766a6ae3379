"""The benchmark of the loss: the naive loss is the same loss, and the command writes what it prints."""

import json
import sys

import pytest
import torch

from bench.measure import interleave
from bench.ops import ensemble_kd_shapes, linear_ensemble_kd
from bench.ops.ensemble_kd import main, naive_loss, variants
from oekd_fast import ensemble_kd_loss


def test_the_naive_loss_is_the_same_loss():
    generator = torch.Generator().manual_seed(0)
    logits = list(torch.randn(5, 16, 30, generator=generator, dtype=torch.float64))
    target = torch.randint(30, (16,), generator=generator)
    torch.testing.assert_close(naive_loss(logits, target), ensemble_kd_loss(logits, target).loss)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eager", "value_and_grad", "differentiable"])
def test_a_variant_can_be_called_repeatedly(name):
    call = variants(4, 10)[name]
    call()
    call()


def test_samples_are_interleaved_and_summarised():
    calls = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0, min_sample=0.0)
    assert calls[-20:] == ["a", "b"] * 10
    assert all(t.samples == 10 and 0 < t.lower <= t.median <= t.upper for t in timings.values())


def test_calls_are_timed_by_the_clock_that_is_given():
    seconds = 0.0

    def call(took):
        nonlocal seconds
        seconds += took

    calls = {"a": lambda: call(0.002), "b": lambda: call(0.5)}
    timings = interleave(calls, 0.0, clock=lambda: seconds)
    assert {name: round(t.median, 6) for name, t in timings.items()} == {"a": 2.0, "b": 500.0}


def test_the_command_writes_its_table_and_file(tmp_path, monkeypatch, capsys):
    file = tmp_path / "out.json"
    monkeypatch.setattr("bench.ops.ensemble_kd.compiled", lambda function: function)  # compilation takes seconds
    monkeypatch.setattr(sys, "argv", ["ensemble_kd", "--sizes", "8x16", "--seconds", "0.1", "--json", str(file)])
    main()
    printed = capsys.readouterr().out
    (result,) = json.loads(file.read_text())["results"]
    assert result["milliseconds"].keys() == {"eager", "compiled", "value_and_grad", "differentiable"}
    assert f"B={result['rows']}" in printed and "x eager" in printed


@pytest.mark.parametrize(
    "shape, class_dim, probabilities, standardise",
    [
        ((2, 5, 3, 4), 1, False, False),
        ((2, 5, 3, 4), 1, False, True),
        ((2, 3, 5), -1, False, True),
        ((6, 5), 1, True, False),
    ],
)
def test_the_naive_loss_of_shapes_is_the_same_loss(shape, class_dim, probabilities, standardise):
    logits, target = ensemble_kd_shapes.Case(shape, class_dim, 3, probabilities).tensors()
    expected = ensemble_kd_loss(logits, target, class_dim=class_dim, standardise_logits=standardise).loss
    torch.testing.assert_close(ensemble_kd_shapes.naive_loss(logits, target, class_dim, standardise), expected)


def test_the_command_of_shapes_writes_its_file(tmp_path, monkeypatch, capsys):
    file = tmp_path / "out.json"
    monkeypatch.setattr("bench.ops.ensemble_kd_shapes.compiled", lambda function: function)
    monkeypatch.setattr(ensemble_kd_shapes, "CASES", {"small": ensemble_kd_shapes.Case((2, 5, 4, 5))})
    monkeypatch.setattr(sys, "argv", ["shapes", "--cases", "small", "--seconds", "0.1", "--json", str(file)])
    ensemble_kd_shapes.main()
    (result,) = json.loads(file.read_text())["results"]
    assert result["shape"] == [2, 5, 4, 5] and result["value_and_grad_speedup"].keys() == {"eager", "compiled"}
    assert "small: 2x5x4x5, S = 5" in capsys.readouterr().out


def test_the_command_of_classifiers_writes_its_file(tmp_path, monkeypatch, capsys):
    file = tmp_path / "out.json"
    monkeypatch.setattr(linear_ensemble_kd, "growth", lambda name, *shape: 1.5)  # processes of their own otherwise
    size = ["--rows", "6", "--classes", "10", "--size", "4", "--seconds", "0.1"]
    monkeypatch.setattr(sys, "argv", ["linear", *size, "--json", str(file)])
    linear_ensemble_kd.main()
    (result,) = json.loads(file.read_text())["results"]
    assert tuple(result["milliseconds"]) == linear_ensemble_kd.VARIANTS
    assert result["gradients_megabytes"] == 0.0 and result["peak_growth_megabytes"]["chunks"] == 1.5
    assert "linear cross entropy" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_of_a_call_is_that_of_a_process_of_its_own():
    assert linear_ensemble_kd.growth("whole logits", 64, 20000, 4) > 2 * 64 * 20000 * 4 / 1e6
