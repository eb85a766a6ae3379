"""Goals, what to look at next, and runs side by side, from results made by hand."""

import sys

import pytest

from bench.gpu import compare, figures, goals
from bench.gpu.advice import advice
from bench.gpu.record import Record
from bench.model import roofline
from bench.model.step_cost import StepCost

from .conftest import loss_result, profile, step_result

GOOD = {"published": 100.0, "compiled": 30.0, "ours_captured": 10.0, "ours_one_stream": 12.0, "largest_alone": 8.0}


def one_step(ms, profiles=None, **more):
    return {"step resnet20": {"step resnet20 128": step_result(ms, profiles, **more)}}


def test_goals_are_reached_or_missed():
    parts = one_step(GOOD) | {
        "loss": {
            "8192x1000 bfloat16": loss_result(8192, 1000, 0.1, 0.85),
            "128x100 bfloat16": loss_result(128, 100, 0.0075),
            "8192x32000 bfloat16": loss_result(8192, 32000, 2.0, 0.5),  # streamed: no goal
        }
    }
    text = [" ".join(line.split()) for line in goals.lines(parts)]
    assert text == [
        "loss in registers, share of a copy's bandwidth: goal >= 90 %", "8192x1000 bfloat16 85.00 % MISSED",
        "loss at 128 x 100, value and grad: goal <= 8 us", "128x100 bfloat16 7.50 us reached",
        "step, times faster than the published form: goal >= 8x", "resnet20 128 10.00x reached",
        "step, times faster than torch.compile: goal >= 2x", "resnet20 128 3.00x reached",
        "step of the family over its largest student's: goal <= 1.5x", "resnet20 128 1.25x reached",
    ]  # fmt: skip
    assert "not measured" in next(goals.lines({}))


def test_good_results_leave_nothing_to_look_at():
    good = one_step(GOOD, {"ours_captured": profile([["convolution", 3, 90.0]])})
    assert advice(good, {}) == []


@pytest.mark.parametrize(
    "parts, expected",
    [
        ({"smoke": {"loss rows float32": {"right": False}}}, "smoke, loss rows float32: the result is wrong."),
        ({"environment": {"machine": {"no_executor": "not built"}}}, "share one stream: not built."),
        (
            {"tests": {"tests/a.py": {"failures": ["tests/a.py::x"], "unfinished": ["tests/a.py::y"], "right": False}}},
            "tests/a.py: 2 tests fail or do not finish, first tests/a.py::x.",
        ),
        (one_step(GOOD, reasons={"ours_blocks": "OutOfMemoryError"}), "ours_blocks was not measured: OutOfMemory"),
        (
            one_step(GOOD, {"ours_captured": profile([["conv", 1, 80.0], ["nchwToNhwcKernel<x>", 9, 20.0]])}),
            "pad channels or convert layouts take 20 % of the kernels' time. Stored as multiples of 8",
        ),
        (
            one_step(GOOD, {"ours_captured": profile([["conv", 1, 80.0], ["direct_copy_kernel_cuda", 9, 20.0]])}),
            "copies and casts take 20 %",
        ),
        (
            one_step(GOOD, {"ours_captured": profile([["conv", 500, 80.0]], busy_share=0.6)}),
            "no kernel runs in 40 % of the step (500 kernels). Fewer and larger launches",
        ),
        (one_step(GOOD | {"ours_blocks": 8.0}), "compiled blocks are 1.25x faster: use --compile-blocks."),
        (one_step(GOOD | {"ours_unpadded": 8.0}), "without padded channels a step is 1.25x faster"),
        (one_step(GOOD | {"ours_one_stream": 10.1}), "several streams gain 1.01x over one"),
        (
            one_step(GOOD | {"largest_alone": 5.0}, {"ours_captured": profile([["wgrad", 4, 60.0], ["b", 1, 40.0]])}),
            "resnet20 128: 2.00x misses <= 1.5x. The kernel that takes most: wgrad (4 times, 60 %).",
        ),
        ({"loss": {"k": loss_result(8192, 1000, 0.1, 0.6)}}, "loss k: 60 % of a copy's bandwidth. By the model memory"),
        ({"loss": {"k": loss_result(128, 100, 0.008, wall=0.09)}}, "the host takes 90 us a call, the device 8.0 us."),
    ],
)  # fmt: skip
def test_each_finding_has_its_line(parts, expected):
    (line,) = advice(parts, {})
    assert expected in line


def test_errors_come_first_and_nothing_twice():
    wrong = {"smoke": {"a": {"right": False}}, "step": {"b": {"right": False}}}
    found = advice(wrong, {"loss": {"k": "ValueError: no\nTraceback"}})
    assert found[0] == "loss, k: failed: ValueError: no" and len(found) == 3


def test_bandwidths_and_shares_of_the_bounds():
    result = {"rows": 8192, "classes": 32000, "dtype": "bfloat16", "device_ms": {"value_and_grad": {"median": 2.0}}}
    result["device_ms"] |= {"eager": {"median": 20.0}}
    derived = figures.derive(result, 4e12, "NVIDIA H200")["value_and_grad"]
    moved = roofline.value_and_grad(roofline.Problem(5, 8192, 32000, 2)).bytes
    assert derived["gigabytes_per_second"] == pytest.approx(moved / 2e-3 / 1e9, abs=0.1)
    assert derived["share_of_copy"] == pytest.approx(moved / 2e-3 / 4e12, abs=1e-4)
    assert 0 < derived["share_of_floor"] < 1 and derived["faster_than"] == {"eager": 10.0}
    assert "share_of_copy" not in figures.derive(result, None)["value_and_grad"]
    copies = {"a": {"copy 1": {"bytes": 1, "gigabytes_per_second": 9.0}}}
    copies["b"] = {"copy 2": {"bytes": 2, "gigabytes_per_second": 3.0}, "other": {}}
    assert figures.copy_bandwidth(copies) == 3e9 and figures.copy_bandwidth({"b": {"other": {}}}) is None


def test_names_of_cards():
    names = {"NVIDIA H200": "H200", "NVIDIA H100 80GB HBM3": "H100", "NVIDIA A100-SXM4-80GB": "A100"}
    assert {name: roofline.card_named(name).name for name in names} == names
    for other in ("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA GH200 480GB", ""):
        assert roofline.card_named(other) is None


def test_two_cards_are_compared_by_ratios(tmp_path, monkeypatch, capsys):
    for folder, card, ours in (("one", "NVIDIA H100 80GB HBM3", 10.0), ("two", "NVIDIA H200", 8.0)):
        record = Record(tmp_path / folder)
        result = step_result(GOOD | {"ours_captured": ours}, {"ours_captured": profile([["k", 7, 5.0]])})
        record.append(part="environment", key="machine", result={"gpu": card})
        record.append(part="step resnet20", key="step resnet20 128", result=result)
    record.append(part="loss", key="8x9 x", result=loss_result(8, 9, 1.0))
    costs = {"fused": StepCost(bytes=10**9, flops=10**12, launches=100, chain=50)}
    monkeypatch.setattr(compare, "step_costs", lambda problem: costs)
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "one"), str(tmp_path / "two"), "--floors"])
    compare.main()
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines()) and "one H100 80GB" in printed
    text = " ".join(printed.split())
    assert "loss 8x9 x, value_and_grad, times faster than eager - 5.00" in text  # on the second card alone
    # 1 ms of arithmetic (989 TFLOP/s) on both cards.
    assert "step resnet20 128, captured, over the fused bound 9.89 7.91" in text
    assert "captured, busy share 0.99 0.99" in text and "128 x 100" not in text
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "three")])
    with pytest.raises(SystemExit, match="2"):
        compare.main()
