"""Training curves: panels, lines, limits of axes, and the values under the pointer."""

from xml.etree import ElementTree

import pytest

from oekd_fast.figures import series
from oekd_fast.figures.curves import accuracy_limits, curve_figure
from oekd_fast.figures.palette import student_color
from oekd_fast.figures.plotting import new_panels, shared_legend
from oekd_fast.figures.svg import svg

from .test_svg import titles


def history(epochs: int, students: int = 2, **train) -> list[dict]:
    """Return lines of metrics.jsonl of a phase."""
    return [
        {
            "epoch": epoch,
            "learning_rate": 0.1 / epoch,
            "train": {"ce": [1.0 / epoch] * students, "kd": [0.5 if students > 1 else 0.0] * students} | train,
            "validation": {"accuracy": [90.0 - j - 10 / epoch for j in range(students)], "ensemble_accuracy": 95.0},
        }
        for epoch in range(1, epochs + 1)
    ]


def panels_of(*runs) -> dict[str, list]:
    """Return the lines of each panel by the label of its vertical axis."""
    figure = curve_figure([{"ensemble": history(3)}] if not runs else list(runs), [2])
    return {axes.get_ylabel(): [line for line in axes.lines if len(line.get_xdata()) > 2] for axes in figure.axes}


def test_old_runs_have_a_panel_for_each_value_that_they_recorded():
    assert list(panels_of()) == [
        "validation accuracy, %", "training cross-entropy, nats", "distillation loss, nats", "learning rate",
    ]  # fmt: skip
    bare = history(3)
    for line in bare:
        del line["learning_rate"]
        line["train"]["kd"] = [0.0, 0.0]
    assert list(panels_of({"ensemble": bare})) == ["validation accuracy, %", "training cross-entropy, nats"]


def test_every_term_of_the_loss_is_drawn():
    lines = history(3, loss=3.0, feature=2.0, ensemble_ce=0.25, accuracy=[50.0, 60.0], attention=0.5, hints=[1.0, 2.0])
    for line in lines:
        line["validation"] |= {"ce": [0.75, 0.5], "ensemble_ce": 0.25}
    panels = panels_of({"ensemble": lines})
    assert list(panels) == [
        "validation accuracy, %", "training cross-entropy, nats", "validation cross-entropy, nats",
        "distillation loss, nats", "training hints", "training loss of the family", "learning rate",
    ]  # fmt: skip
    family = panels["training loss of the family"]
    assert [(line.get_label(), line.get_ydata()[0]) for line in family] == [
        ("weighted sum of all terms", 3.0), ("intermediate loss, not weighted", 2.0), ("attention", 0.5),
    ]  # fmt: skip
    assert [line.get_ydata()[0] for line in panels["training cross-entropy, nats"]] == [1.0, 1.0, 0.25]
    assert [line.get_ydata()[0] for line in panels["validation cross-entropy, nats"]] == [0.75, 0.5, 0.25]


@pytest.mark.parametrize("value", [None, "0.1", float("nan"), True, [1.0], 10**400])
def test_values_of_other_types_are_left_out(value):
    lines = history(3, loss=1.0, feature=value)
    lines[1]["learning_rate"] = value
    panels = panels_of({"ensemble": lines})
    assert "learning rate" not in panels and len(panels["training loss of the family"]) == 1


def test_students_alone_have_the_colours_of_the_family_and_dashed_lines():
    panels = panels_of({"ensemble": history(3), "baseline_1": history(3, 1), "baseline_2": history(3, 1)})
    for panel in ("validation accuracy, %", "training cross-entropy, nats"):
        styles = [(line.get_color(), line.get_linestyle()) for line in panels[panel]]
        assert styles[:4] == [(student_color(j), style) for j in (0, 1) for style in ("-", "--")]
    assert len(panels["distillation loss, nats"]) == 2  # it is 0 alone


def test_curves_of_runs_that_stopped_early_end_with_the_shortest():
    panels = panels_of({"ensemble": history(3)}, {"ensemble": history(5)})
    assert all(list(line.get_xdata()) == [1, 2, 3] for lines in panels.values() for line in lines)
    assert list(panels["validation accuracy, %"][0].get_ydata()) == pytest.approx([80, 85, 90 - 10 / 3])


def test_epochs_without_an_evaluation_have_no_accuracies():
    """Every second epoch and the last one were evaluated; the first of the two runs stopped early."""
    lines, alone = history(5), history(4, 1)
    for line in (lines[0], lines[2], alone[0], alone[2]):
        del line["validation"]
    panels = panels_of({"ensemble": lines, "baseline_1": alone})
    for line in panels["validation accuracy, %"]:
        assert list(line.get_xdata()) == [2, 4, 5]
    assert list(panels["training cross-entropy, nats"][0].get_xdata()) == [1, 2, 3, 4, 5]
    figure = curve_figure([{"ensemble": lines[:4]}, {"ensemble": lines}], [2, 4])
    assert list(figure.axes[0].lines[0].get_xdata()) == [2, 4]


def test_the_values_of_an_epoch_are_under_the_pointer():
    run = {"ensemble": history(3), "baseline_1": history(3, 1)}
    root = ElementTree.fromstring(svg(lambda: curve_figure([run], [2]), "curves"))
    assert list(titles(root[0])) == [
        f"epoch {epoch}\nstudent 1: {value}\nstudent 1 alone: {value}\nstudent 2: {smaller}\nensemble: 95.00"
        for epoch, value, smaller in ((1, "80.00", "79.00"), (2, "85.00", "84.00"), (3, "86.67", "85.67"))
    ]
    assert "epoch 2\nlearning rate: 0.05" in titles(root[-1])


def test_runs_of_several_seeds_show_their_spread():
    other = history(3)
    for line in other:
        line["validation"]["ensemble_accuracy"] = 93.0
    root = ElementTree.fromstring(svg(lambda: curve_figure([{"ensemble": history(3)}, {"ensemble": other}], [2]), "x"))
    assert all(text.endswith("\nensemble: 94.00 ± 1.41") for text in titles(root[0]))


@pytest.mark.parametrize("epochs", [80, 81, 200, 1])
def test_long_runs_show_some_epochs_with_the_last_one(epochs, monkeypatch):
    monkeypatch.setattr(series, "MOST_BANDS", 40)
    root = ElementTree.fromstring(svg(lambda: curve_figure([{"ensemble": history(epochs)}], [1]), "curves"))
    shown = [int(text.split()[1]) for text in titles(root[0])]
    assert len(shown) == {80: 40, 81: 27, 200: 40, 1: 1}[epochs] and shown[-1] == epochs
    assert len({right - left for left, right in zip(shown[:-1], shown[1:], strict=True)}) <= 1


def test_an_axis_of_accuracies_shows_where_they_end_up():
    rising = [10.0, 30.0, 60.0, 80.0, 85.0, 88.0, 89.0, 90.0]
    # The second half is 85 to 90, and as much again is below it.
    assert accuracy_limits([rising]) == (80.0, pytest.approx(90.3), True)
    assert accuracy_limits([rising, [value - 5 for value in rising]]) == (70.0, pytest.approx(90.6), True)
    bottom, top, cut = accuracy_limits([[82.0, 84.0, 85.0, 86.0, 88.0, 90.0]])
    assert not cut and bottom < 82 and top > 90
    assert accuracy_limits([[10.0, 90.0]])[::2] == (pytest.approx(5.2), False)  # few epochs are shown as a whole
    assert accuracy_limits([[5.0, 5.0]]) == (4.8, 5.2, False)
    assert accuracy_limits([[0.0] * 9]) == (0.0, 0.2, False)
    assert accuracy_limits([[0.0, 0.1, 0.5, 0.6, 0.6, 0.6]])[::2] == (0.0, False)


def test_the_axis_says_where_it_is_cut_off():
    lines = history(40)
    lines[0]["validation"]["accuracy"] = [10.0, 10.0]
    axes, *_ = curve_figure([{"ensemble": lines}], [2]).axes
    assert axes.get_title() == "lower values than 82 % are not shown" and axes.get_ylim()[0] == pytest.approx(
        82, abs=0.1
    )
    assert curve_figure([{"ensemble": lines[1:]}], [2]).axes[0].get_title() == ""


def test_a_legend_of_many_students_has_twelve_entries():
    figure = curve_figure([{"ensemble": history(3, students=30)}], [2])
    legend = [text.get_text() for text in figure.subfigs[0].legends[0].get_texts()]
    first, last = [f"student {j}" for j in range(1, 7)], ["student 28", "student 29", "student 30"]
    assert legend == [*first, "… 21 more", *last, "ensemble", "selected epoch"]
    assert svg(figure, "curves").count("<text") > 50


def test_a_legend_has_the_columns_that_fit_its_panel():
    def columns(*labels: str) -> int:
        figure, (panel,) = new_panels(1)
        axes = panel.subplots()
        for label in labels:
            axes.plot([], [], label=label)
        shared_legend(panel, axes)
        # Entries are placed in columns, from top to bottom.
        figure.draw_without_rendering()
        return len({round(text.get_window_extent().x0) for text in panel.legends[0].get_texts()})

    assert columns("a", "b", "c", "d", "e") == 4 and columns("a") == 1
    assert columns(*["a label of twenty-four"] * 6) == 2 and columns(*["a label" * 9] * 3) == 1
