"""Gains of students from training in the family, with their significance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oekd_fast.figures.sizes import of_students
from oekd_fast.reporting.finished_runs import Run
from oekd_fast.reporting.predictions import Predictions
from oekd_fast.reporting.significance import LEVEL, Difference, holm, on_other_images, on_same_images, over_seeds


@dataclass(frozen=True)
class Gains:
    """Accuracy of each student in the family minus that of the same student trained alone.

    Args:
        differences: the gain of each student.
        p: p-value of each gain, adjusted for the number of students; None without a test.
        method: the test and what its errors cover, in one or two sentences.
    """

    differences: tuple[Difference, ...]
    p: tuple[float | None, ...]
    method: str

    def is_significant(self, j: int) -> bool:
        """Return whether the gain of student `j`, counted from 0, is significant."""
        p = self.p[j]
        return p is not None and p < LEVEL

    def verdict(self, j: int) -> str:
        """Return "significant" or "not significant" with the p-value, or "not tested"."""
        p = self.p[j]
        if p is None:
            return "not tested"
        return f"{'' if self.is_significant(j) else 'not '}significant, {p_text(p)}"

    def sentence(self) -> str:
        """Return one sentence on the gains of all students."""
        if all(p is None for p in self.p):
            gains, are = ("gains", "are") if len(self.p) > 1 else ("gain", "is")
            return f"The {gains} of training in the family, {self._range(range(len(self.p)))}, {are} not tested."
        significant = [j for j in range(len(self.p)) if self.is_significant(j)]
        rest = [j for j in range(len(self.p)) if not self.is_significant(j)]
        better = [j for j in significant if self.differences[j].points > 0]
        worse = [j for j in significant if self.differences[j].points <= 0]
        if not significant:
            return f"No gain of training in the family over training alone is significant: {self._range(rest)}."
        parts = [
            f"{_students(found)} {'is' if len(found) == 1 else 'are'} significantly {how} accurate in the family than "
            f"alone ({', '.join(str(self.differences[j]) for j in found)} points)"
            for found, how in ((better, "more"), (worse, "less"))
            if found
        ]
        if rest:
            one = len(rest) == 1
            parts.append(
                f"the gain{'' if one else 's'} of {_students(rest)} {'is' if one else 'are'} not significant "
                f"({self._range(rest)})"
            )
        text = "; ".join(parts) + "."
        return text[0].upper() + text[1:]

    def _range(self, students: Sequence[int]) -> str:
        found = [self.differences[j] for j in students]
        if len(found) == 1:
            return f"{found[0]} points"
        low, high = (choose(found, key=lambda difference: difference.points) for choose in (min, max))
        return f"{low} to {high} points"


def gains_of(runs: Sequence[Run], predictions: Predictions | None) -> Gains | None:
    """Return the gains of the students of `runs`, which differ in the seed only.

    Several runs are compared seed by seed. Of a single run, the predictions for the same test images are compared if
    they are known, and otherwise its accuracies.

    Args:
        predictions: predictions of the first run, with those of students trained alone; None if they are unknown.

    Returns:
        The gains; None if a run has no students trained alone.
    """
    summaries = [run.summary for run in runs]
    if not of_students(summaries, "baseline_accuracy"):
        return None
    count, images = len(summaries[0]["students"]), summaries[0]["test_images"]

    def accuracies(j: int, name: str) -> list[float]:
        return [summary["students"][j][name] for summary in summaries]

    if len(runs) > 1:
        differences = [over_seeds(accuracies(j, "accuracy"), accuracies(j, "baseline_accuracy")) for j in range(count)]
        method = f"Paired t test over {len(runs)} seeds; ± is the standard error of the mean over seeds."
    elif predictions is not None and len(predictions.names) == 2 * count + 1:
        correct = predictions.predicted == predictions.labels
        differences = [on_same_images(correct[j], correct[count + 1 + j]) for j in range(count)]
        method = (
            f"McNemar's exact test on the same {images:,} test images; ± is the standard error from the choice of "
            "these images. The effect of another seed is not included; it needs several runs."
        )
    else:
        differences = [
            on_other_images(*accuracies(j, "accuracy"), *accuracies(j, "baseline_accuracy"), images)
            for j in range(count)
        ]
        method = (
            f"Fisher's exact test on the numbers of correct images among {images:,}; ± is the standard error of two "
            "networks with test images of their own. It is an upper bound, as both had the same images and their "
            "predictions are not available here. The effect of another seed is not included; it needs several runs."
        )
    if count > 1:
        method += f" p-values are adjusted for {count} students (Holm)."
    return Gains(tuple(differences), tuple(holm([difference.p for difference in differences])), method)


def p_text(p: float) -> str:
    """Return "p = 0.012" in two digits, or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:#.2g}"


def _students(indices: Sequence[int]) -> str:
    """Return "student 1" or "students 1, 2 and 3" for indices from 0."""
    *first, last = (str(j + 1) for j in indices)
    return f"students {', '.join(first)} and {last}" if first else f"student {last}"
