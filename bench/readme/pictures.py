"""Draw the pictures of README.md and docs/ from the files in bench/results.

python -m bench.readme.pictures        # writes docs/images/*.png
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oekd_fast.common.spread import Spread, spread
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.figures.palette import ENSEMBLE, NEUTRAL, OF_ENSEMBLE, student_color, student_marker
from oekd_fast.figures.plotting import (
    logarithmic,
    new_figure,
    new_panels,
    number_of_student,
    percent_axis,
    png,
    shared_legend,
)
from oekd_fast.figures.sizes import draw_students

from ..evidence import results as evidence
from ..evidence.arms import ARMS, COMMON
from ..evidence.gains import best_alone, gain
from .tables import RESULTS, ROOT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS, RECIPE, OTHER = 30, "one", "paper"  # of the comparison of recipes


def digits(results: Path) -> Figure:
    """The reproduction on the digits over ten seeds."""
    report = json.loads((results / "reproduce_digits_resnet20.json").read_text())
    accuracy = report["accuracy"]["last_epoch"]
    alone, family = (
        [Spread(value["mean"], value["deviation"]) for value in accuracy[name]] for name in ("baseline", "family")
    )
    title = f"ResNet-20 x 5 on digits, {report['epochs']} epochs, mean of {len(report['seeds'])} seeds"
    parameters = [student["parameters"] for student in report["students"]]
    return family_against_alone(parameters, alone, family, accuracy["ensemble"]["mean"], title, "test")


def recipes(results: Path) -> Figure:
    """The comparison of recipes on a subset of CIFAR-100."""
    entries = [e for e in evidence.read(results / "evidence_cifar100.json") if e["epochs"] == EPOCHS]
    students = range(COMMON["num_students"])
    families = {
        name: [entry for entry in entries if (entry["arm"], entry["student"]) == (name, None)]
        for name in (RECIPE, OTHER)
    }
    family, other = (
        [spread([entry["accuracy"][j] for entry in of_recipe]) for j in students] for of_recipe in families.values()
    )
    alone = [spread(list(best_alone(entries, EPOCHS, j + 1)[1].values())) for j in students]
    seeds = len(families[RECIPE])
    title = f"ResNet-20 x 5, 10,000 images of CIFAR-100, {EPOCHS} epochs, mean of {seeds} seeds"
    parameters = build_ensemble(COMMON["model"], len(students), num_classes=100).parameter_counts()
    ensemble = spread([entry["ensemble"] for entry in families[RECIPE]]).mean
    other_family = ("in the family, weights of the paper", other)
    return family_against_alone(parameters, alone, family, ensemble, title, "validation", other_family)


def family_against_alone(
    parameters: Sequence[int],
    alone: Sequence[Spread],
    family: Sequence[Spread],
    ensemble: float,
    title: str,
    split: str,
    other_family: tuple[str, Sequence[Spread]] | None = None,
) -> Figure:
    """Draw accuracies in percent against parameters, with error bars of one sample standard deviation.

    Args:
        parameters: number of parameters of each student.
        alone, family: accuracy of each student alone and in the family.
        ensemble: accuracy of the family's ensemble.
        title: title of the figure.
        split: name of the images, "test" or "validation".
        other_family: label and accuracies of another family, which is drawn without error bars.
    """
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    # The two lines are shifted apart by 2 % of the size, so that their error bars do not cover each other.
    for values, shift in ((alone, 0.98), (family, 1.02)):
        errors = [value.deviation or 0.0 for value in values]
        draw_students(axes, [shift * x for x in parameters], values, errors, alone=values is alone)
    for number, (size, *both) in enumerate(zip(parameters, alone, family, strict=True), start=1):
        number_of_student(axes, number, (size, max(value.mean + (value.deviation or 0.0) for value in both)))
    if other_family is not None:
        label, values = other_family
        axes.plot(parameters, [value.mean for value in values], "x", color=NEUTRAL, label=label)
    axes.axhline(ensemble, color=ENSEMBLE, linestyle=OF_ENSEMBLE, label="ensemble")
    logarithmic(axes.xaxis)
    axes.set(xlabel="parameters", ylabel=f"{split} accuracy, %")
    axes.set_title(title, fontsize="medium")
    percent_axis(axes)
    axes.grid()
    shared_legend(figure, axes, columns=3 if other_family is None else 2)
    return figure


def lengths(results: Path) -> Figure:
    """Gains of students against the epochs of the schedule, for the recipes that were trained with several."""
    entries = evidence.read(results / "evidence_cifar100.json")
    students, epochs = range(COMMON["num_students"]), sorted({entry["epochs"] for entry in entries})
    found = {name: [[(e, gain(entries, name, e, j + 1)) for e in epochs] for j in students] for name in ARMS}
    found = {name: [[(e, g) for e, g in row if g is not None] for row in rows] for name, rows in found.items()}
    found = {name: rows for name, rows in found.items() if max(map(len, rows)) > 1}
    figure, panels = new_panels(len(found), columns=3, size=(3.6, 3.4))
    first = None
    for panel, (name, rows) in zip(panels, found.items(), strict=True):
        axes = panel.subplots()
        if first is not None:
            axes.sharey(first)
        first = first or axes
        axes.axhline(0, color=NEUTRAL, linewidth=1)
        for j, row in enumerate(rows):
            # Students are shifted apart by 1.5 % of the epochs, so that error bars do not cover each other.
            x = [length * (1 + 0.015 * (j - len(rows) // 2)) for length, _ in row]
            points = [difference.points for _, (difference, _) in row]
            errors = [math.nan if difference.error is None else difference.error for _, (difference, _) in row]
            axes.errorbar(
                x, points, yerr=errors, color=student_color(j), marker=student_marker(j), capsize=3, linewidth=1,
                label=f"student {j + 1}",
            )  # fmt: skip
        axes.set(xlabel="epochs", ylabel="gain over alone, points", title=name, xscale="log")
        axes.set_xticks(epochs, [str(length) for length in epochs], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid()
        shared_legend(panel, axes, columns=3)
    return figure


PICTURES = {"accuracy_against_size": digits, "evidence": recipes, "evidence_epochs": lengths}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name, draw in PICTURES.items():
        (ROOT / "docs" / "images" / f"{name}.png").write_bytes(png(lambda draw=draw: draw(RESULTS)))


if __name__ == "__main__":
    main()
