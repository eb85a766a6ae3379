"""Which student is picked, why, and what is refused."""

import math

import pytest

import oekd_fast
from oekd_fast import pick_student
from oekd_fast.choice.budget import Budget
from oekd_fast.choice.candidates import Candidate
from oekd_fast.choice.choose import NothingFitsError, choose
from oekd_fast.reporting.finished_runs import ReportError

from ..support.reports import change


@pytest.mark.parametrize(
    ("budget", "name", "reason"),
    [
        (
            {"max_ms": 4.0, "runtime": "eager"},
            "student 1",
            "the highest validation accuracy (98.50 %) of the 4 that fit",
        ),
        (
            {"max_ms": 3.99, "runtime": "eager"},
            "student 3",
            "of the 3 that fit, and the fewest parameters of the 2 that have it",
        ),
        ({"max_ms": 2.0, "runtime": "eager"}, "student 4", "the only one that fits"),
        ({"max_ms": 2.0, "runtime": "onnx"}, "student 1", "(98.50 %) of the 4 that fit"),
        ({"max_ms": 2.0}, "student 1", "(98.50 %) of the 4 that fit"),
        (
            {"max_ms": 10.0, "runtime": "eager"},
            "ensemble",
            "validation accuracy (99.00 %) of the 5 that fit",
        ),
        ({"max_ms": 7.0, "runtime": "eager", "threads": 1}, "student 3", "of the 3 that fit"),
        ({"max_ms": 100.0, "batch": 64, "min_accuracy": 95.0}, "student 2", "the only one that fits"),
        ({"max_parameters": 499}, "student 3", "of the 2 that fit"),
        ({"max_parameters": "0.4k"}, "student 3", "of the 2 that fit"),
        ({"max_bytes": "500kB"}, "student 3", "of the 3 that fit"),
        ({"max_bytes": 100_000}, "student 4", "the only one that fits"),
        ({"max_bytes": "2MiB"}, "ensemble", "of the 5 that fit"),
        ({"min_accuracy": 97.0}, "student 3", "the fewest parameters (333) of the 4 that fit"),
        ({"min_accuracy": 97.25}, "student 3", "of the 4 that fit"),
        ({"min_accuracy": 97.26}, "student 1", "the fewest parameters (1,000) of the 2 that fit"),
        ({"min_accuracy": 0}, "student 4", "of the 5 that fit"),
        ({"min_accuracy": 98.0, "max_ms": 5.0, "runtime": "eager"}, "student 1", "the only one that fits"),
        ({"min_accuracy": 95.0, "max_ms": 3.2, "runtime": "eager"}, "student 2", "the only one that fits"),
    ],
    ids=str,
)
def test_the_choice_and_its_reason(run, budget, name, reason):
    choice = pick_student(run, **budget)
    assert choice.chosen.name == name and reason in choice.reason
    assert [candidate.name for candidate in choice.candidates] == [*(f"student {j}" for j in (1, 2, 3, 4)), "ensemble"]


def test_validation_accuracy_decides_and_test_accuracy_is_beside_it(run):
    choice = pick_student(str(run), max_parameters=999)
    assert (choice.chosen.validation_accuracy, choice.chosen.test_accuracy) == (97.25, 96.5)
    # Student 2 has the highest test accuracy.
    assert max(choice.candidates, key=lambda candidate: candidate.test_accuracy).name in ("student 2", "ensemble")


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"max_ms": 0.1}, "student 4 (0.500 ms of at most 0.1)"),
        ({"max_parameters": 100}, "student 4 (250 parameters of at most 100)"),
        ({"max_bytes": 1000}, "student 4 (40.0 kB of at most 1.00 kB)"),
        ({"min_accuracy": 99.5}, "ensemble (99.00 % of at least 99.5 %)"),
        ({"min_accuracy": 98.0, "max_parameters": 900}, "student 2 (97.25 % of at least 98 %)"),  # as is student 3
        ({"max_ms": 0.4, "max_parameters": 240}, "student 4 (0.500 ms of at most 0.4, 250 parameters of at most 240)"),
    ],
    ids=str,
)
def test_what_comes_closest_is_named(run, budget, message):
    with pytest.raises(NothingFitsError) as raised:
        pick_student(run, **budget)
    assert str(raised.value) == f"budget: nothing fits; the closest is {message}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "budget: expected at least one of max_ms, max_parameters, max_bytes, min_accuracy, got none"),
        ({"max_ms": 0}, "max_ms: expected a number > 0, got 0"),
        ({"max_ms": math.nan}, "max_ms: expected a number > 0, got nan"),
        ({"max_ms": True}, "max_ms: expected a number > 0, got True"),
        ({"max_parameters": -5}, "max_parameters: expected a number > 0, got -5"),
        ({"max_parameters": "5x"}, "max_parameters: expected a number such as 100000, 100k or 1.5M, got '5x'"),
        ({"max_bytes": "1.5"}, "max_bytes: expected bytes such as 500000, 500kB, 1.5M or 2MiB, got '1.5'"),
        ({"min_accuracy": 101}, "min_accuracy: expected a percentage from 0 to 100, got 101"),
        ({"max_ms": 1, "batch": 8}, "batch: expected one of those that were measured, 1, 64, got 8"),
        ({"max_ms": 1, "runtime": "tvm"}, "runtime: expected one of those that were measured, eager, onnx, got tvm"),
        ({"max_ms": 1, "threads": 4}, "threads: expected one of those that were measured, 2, 1, got 4"),
        ({"max_ms": 1, "device": "cuda:1"}, "device: expected one of those that were measured, cpu, got cuda"),
        (
            {"max_ms": 1, "runtime": "onnx", "batch": 64},
            "batch: expected one of those that were measured, 1, got 64",
        ),
    ],
    ids=str,
)
def test_what_is_refused_is_one_line(run, options, message):
    with pytest.raises(ValueError) as raised:
        pick_student(run, **options)
    assert str(raised.value) == message


def test_an_old_run_has_sizes_but_no_latency(old_run):
    with pytest.raises(ValueError, match="^max_ms: expected a run with latency, got .*--measure measures it on this"):
        pick_student(old_run, max_ms=5)
    choice = pick_student(old_run, max_parameters=500)
    assert choice.chosen.name == "student 3" and choice.setting is None and choice.weights is None
    assert [candidate.name for candidate in choice.candidates] == [f"student {j}" for j in (1, 2, 3, 4)]
    with pytest.raises(NothingFitsError, match=r"closest is student 1 \(max_bytes unknown\)"):
        pick_student(old_run, max_bytes="1M")


def test_the_ensemble_without_a_latency_fits_no_limit_of_it(run):
    choice = pick_student(run, max_ms=1e9, runtime="onnx")
    assert choice.candidates[-1].latency is None and choice.chosen.name == "student 1"


def test_remarks_are_those_of_the_setting(run):
    assert pick_student(run, max_ms=9, runtime="eager").remarks == (
        "Student 3 is not measurably faster than student 2",
    )
    assert pick_student(run, max_ms=9).remarks == ()


def test_folders_that_hold_no_finished_run_are_refused(run, tmp_path):
    with pytest.raises(ReportError, match="^run: expected folders of finished runs, got .*missing, which is not a fol"):
        pick_student(tmp_path / "missing", max_ms=5)
    (run / "summary.json").unlink()
    with pytest.raises(ReportError, match="^run: expected finished runs, got .*no summary.json; train with --resume"):
        pick_student(run, max_ms=5)


def test_damaged_files_are_refused(run):
    change(run / "summary.json", students=[])
    with pytest.raises(ReportError, match="^run: .*summary.json: students: expected a list of objects"):
        pick_student(run, max_ms=5)


def test_an_accuracy_of_zero_is_infinitely_far_from_a_minimum():
    candidate = Candidate(1, 10, None, 0.0, 0.0)
    budget = Budget(min_accuracy=1.0, max_bytes=5)
    assert budget.excess(candidate) == {"max_bytes": math.inf, "min_accuracy": math.inf}
    with pytest.raises(NothingFitsError, match=r"student 1 \(max_bytes unknown, 0.00 % of at least 1 %\)"):
        choose([candidate], budget)


def test_it_is_a_public_name():
    assert "pick_student" in oekd_fast.__all__
