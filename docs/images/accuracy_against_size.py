"""Draw README's picture from the recorded ten-seed reproduction: ``python docs/images/accuracy_against_size.py``."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from oekd_fast.figures.plotting import ALONE, ENSEMBLE, FAMILY, logarithmic, new_figure, png, shared_legend

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / "bench" / "results" / "reproduce_digits_resnet20.json"

results = json.loads(RESULTS.read_text())
accuracy = results["accuracy"]["last_epoch"]
parameters = [student["parameters"] for student in results["students"]]


def draw() -> Figure:
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    # The two lines are shifted apart by 2 % of the size, so that their error bars do not cover each other.
    for name, shift, form, color, label in (
        ("family", 1.02, "o-", FAMILY, "trained as a family"),
        ("baseline", 0.98, "s--", ALONE, "each student alone"),
    ):
        means, deviations = ([value[key] for value in accuracy[name]] for key in ("mean", "deviation"))
        axes.errorbar([shift * x for x in parameters], means, deviations, fmt=form, color=color, capsize=3, label=label)
    axes.axhline(accuracy["ensemble"]["mean"], color=ENSEMBLE, linestyle=":", label="ensemble of the family")
    logarithmic(axes.xaxis)
    axes.set(xlabel="parameters", ylabel="test accuracy, %")
    axes.set_title(
        f"ResNet-20 x 5 on digits, {results['epochs']} epochs, mean of {len(results['seeds'])} seeds", fontsize="medium"
    )
    axes.grid(alpha=0.3)
    shared_legend(figure, axes, columns=3)
    return figure


(HERE / "accuracy_against_size.png").write_bytes(png(draw))
