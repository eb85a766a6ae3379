"""Gains of students from training in the family: which test is made, and what is said about them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oekd_fast.reporting.finished_runs import Run, read_run
from oekd_fast.reporting.gains import Gains, gains_of, p_text
from oekd_fast.reporting.predictions import Predictions
from oekd_fast.reporting.significance import Difference, on_other_images

STORED = read_run(Path(__file__).parents[1] / "fixtures" / "runs_of_0_1_0" / "finished")


def run(family: list[float], alone: list[float | None], images: int = 100) -> Run:
    students = [
        student | {"accuracy": accuracy, "baseline_accuracy": baseline}
        for student, accuracy, baseline in zip(STORED.summary["students"], family, alone, strict=True)
    ]
    return replace(STORED, summary=STORED.summary | {"students": students, "test_images": images})


def predictions(*correct: list[int], count: int) -> Predictions:
    """Return predictions of class 1 for the given images of class 1, and of class 0 for others."""
    predicted = torch.zeros(len(correct), count, dtype=torch.int64)
    for row, images in zip(predicted, correct, strict=True):
        row[images] = 1
    names = ("student 1", "student 2", "ensemble", "student 1 alone", "student 2 alone")[: len(correct)]
    values = torch.ones(len(correct), count)
    return Predictions(names, torch.ones(count, dtype=torch.int64), predicted, confidence=values, loss=values)


def test_one_run_with_predictions_is_compared_image_by_image():
    first, second = list(range(20)), list(range(10, 20))
    known = predictions(first, second, first, second, second, count=20)
    found = gains_of([run([100.0, 50.0], [50.0, 50.0], 20)], known)
    assert [gain.points for gain in found.differences] == [50, 0]
    # McNemar: 2 / 2^10, times two students.
    assert found.p == (pytest.approx(4 / 1024), 1.0) and found.is_significant(0) and not found.is_significant(1)
    assert found.method.startswith("McNemar's exact test on the same 20 test images")
    assert "The effect of another seed is not included" in found.method and "for 2 students (Holm)" in found.method


def test_one_run_without_predictions_of_baselines_has_the_unpaired_bound():
    runs = [run([90.0, 70.0], [80.0, 70.0])]
    for known in (None, predictions([0], [0], [0], count=100)):
        found = gains_of(runs, known)
        assert found.differences == (on_other_images(90.0, 80.0, 100), on_other_images(70.0, 70.0, 100))
        assert found.method.startswith("Fisher's exact test") and "upper bound" in found.method


def test_several_runs_are_compared_seed_by_seed():
    runs = [run([90.0 + k, 70.0], [80.0, 70.0]) for k in range(3)]
    found = gains_of(runs, predictions([0], [0], [0], [0], [0], count=1))
    assert found.differences[0].points == 11 and found.differences[0].error == pytest.approx(3**-0.5)
    assert found.differences[1] == Difference(0.0, 0.0, 1.0)
    assert found.method.startswith("Paired t test over 3 seeds") and found.is_significant(0)


def test_students_that_were_not_trained_alone_have_no_gains():
    assert gains_of([run([90.0, 70.0], [None, None])], None) is None
    assert gains_of([run([90.0, 70.0], [80.0, 70.0]), run([90.0, 70.0], [None, None])], None) is None


def gains(*values: tuple[float, float | None]) -> Gains:
    return Gains(tuple(Difference(points, 0.5, p) for points, p in values), tuple(p for _, p in values), "")


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            gains((0.5, 0.3), (-0.2, 0.8)),
            "No gain of training in the family over training alone is significant: -0.20 ± 0.50 to +0.50 ± 0.50 "
            "points.",
        ),
        (
            gains((0.5, 0.3)),
            "No gain of training in the family over training alone is significant: +0.50 ± 0.50 points.",
        ),
        (
            gains((2.0, 0.01), (3.0, 0.002)),
            "Students 1 and 2 are significantly more accurate in the family than alone (+2.00 ± 0.50, +3.00 ± 0.50 "
            "points).",
        ),
        (
            gains((-2.0, 0.01), (3.0, 0.002), (0.1, 0.9), (0.4, None)),
            "Student 2 is significantly more accurate in the family than alone (+3.00 ± 0.50 points); student 1 is "
            "significantly less accurate in the family than alone (-2.00 ± 0.50 points); the gains of students 3 and 4 "
            "are not significant (+0.10 ± 0.50 to +0.40 ± 0.50 points).",
        ),
        (
            gains((2.0, 0.01), (0.1, 0.9)),
            "Student 1 is significantly more accurate in the family than alone (+2.00 ± 0.50 points); the gain of "
            "student 2 is not significant (+0.10 ± 0.50 points).",
        ),
        (gains((1.0, None)), "The gain of training in the family, +1.00 ± 0.50 points, is not tested."),
        (
            gains((1.0, None), (2.0, None)),
            "The gains of training in the family, +1.00 ± 0.50 to +2.00 ± 0.50 points, are not tested.",
        ),
    ],
    ids=range(7),
)
def test_the_sentence_names_the_significant_students(found, sentence):
    assert found.sentence() == sentence


def test_verdicts():
    found = gains((1.0, 0.0123), (1.0, 0.05), (1.0, None), (1.0, 1e-9))
    verdicts = ["significant, p = 0.012", "not significant, p = 0.050", "not tested", "significant, p < 0.001"]
    assert [found.verdict(j) for j in range(4)] == verdicts
    assert p_text(1.0) == "p = 1.0" and p_text(0.2) == "p = 0.20"
