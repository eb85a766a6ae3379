"""Draw README's picture from the recorded ten-seed reproduction: ``python docs/images/accuracy_against_size.py``."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from oekd_fast.common.spread import Spread
from oekd_fast.figures.palette import ENSEMBLE, OF_ENSEMBLE
from oekd_fast.figures.plotting import logarithmic, new_figure, number_of_student, percent_axis, png, shared_legend
from oekd_fast.figures.sizes import draw_students

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / "bench" / "results" / "reproduce_digits_resnet20.json"

results = json.loads(RESULTS.read_text())
accuracy = results["accuracy"]["last_epoch"]
parameters = [student["parameters"] for student in results["students"]]


def draw() -> Figure:
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    # The two lines are shifted apart by 2 % of the size, so that their error bars do not cover each other.
    for name, shift in (("baseline", 0.98), ("family", 1.02)):
        values = [Spread(value["mean"], value["deviation"]) for value in accuracy[name]]
        sizes = [shift * x for x in parameters]
        draw_students(axes, sizes, values, [value.deviation for value in values], alone=name == "baseline")
    for number, size in enumerate(parameters, start=1):
        of_student = (accuracy[name][number - 1] for name in ("baseline", "family"))
        number_of_student(axes, number, (size, max(value["mean"] + value["deviation"] for value in of_student)))
    axes.axhline(accuracy["ensemble"]["mean"], color=ENSEMBLE, linestyle=OF_ENSEMBLE, label="ensemble")
    logarithmic(axes.xaxis)
    axes.set(xlabel="parameters", ylabel="test accuracy, %")
    axes.set_title(
        f"ResNet-20 x 5 on digits, {results['epochs']} epochs, mean of {len(results['seeds'])} seeds", fontsize="medium"
    )
    percent_axis(axes)
    axes.grid()
    shared_legend(figure, axes, columns=3)
    return figure


(HERE / "accuracy_against_size.png").write_bytes(png(draw))
