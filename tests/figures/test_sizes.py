"""Accuracy against size: error bars, lines, ticks, and the values under the pointer."""

from xml.etree import ElementTree

import pytest
from matplotlib.container import ErrorbarContainer

from oekd_fast.common.spread import spread
from oekd_fast.figures.palette import ENSEMBLE, STUDENT_COLORS, student_color, student_marker
from oekd_fast.figures.plotting import round_numbers
from oekd_fast.figures.sizes import of_students, size_figure, standard_error
from oekd_fast.figures.svg import svg
from oekd_fast.paper.expected import paper_results

from .test_svg import titles


def summary(accuracy: float, baseline: float | None, count: int = 5, **fields) -> dict:
    students = [
        {"parameters": 10**6 // (j + 1), "flops": 10**8 // (j + 1), "accuracy": accuracy, "baseline_accuracy": baseline}
        for j in range(count)
    ]
    return {"students": students, "ensemble_accuracy": accuracy + 1} | fields


def labels(figure) -> list[str]:
    return sorted(text.get_text() for text in figure.subfigs[0].legends[0].get_texts())


def error_bars(axes) -> list[tuple[str, float]]:
    """Return the colour and the half length of each error bar."""
    found = []
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer) and container.has_yerr:
            (bars,) = container.lines[2]
            ((_, low), (_, high)) = bars.get_segments()[0]
            found.append((container.lines[0].get_color(), (high - low) / 2))
    return found


def test_figure_shows_the_results_of_the_paper():
    runs = [summary(70.0, 60.0), summary(72.0, 62.0)]
    figure = size_figure(runs, paper_results("cifar100", "resnet110", 5, "oekd"))
    assert labels(figure) == [
        "alone", "ensemble", "in the family", "paper: alone", "paper: ensemble", "paper: in the family",
    ]  # fmt: skip
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]
    assert figure.axes[0].get_title() == "bars: ± standard error of 2 runs"
    assert of_students(runs, "accuracy")[0] == (71.0, pytest.approx(2**0.5))


def test_runs_without_baselines_have_no_line_for_them():
    assert labels(size_figure([summary(70.0, None)])) == ["ensemble", "in the family"]
    assert of_students([summary(70.0, 60.0), summary(70.0, None)], "baseline_accuracy") == []


def test_error_bars_of_one_run_are_those_of_its_test_images():
    run = summary(80.0, 50.0, 2, test_images=400)
    # sqrt(0.5 * 0.5 / 400) and sqrt(0.8 * 0.2 / 400)
    bars = error_bars(size_figure([run]).axes[0])
    assert bars == [(student_color(j), pytest.approx(error)) for error in (2.5, 2.0) for j in (0, 1)]
    assert standard_error(spread([100.0]), [run]) == standard_error(spread([0.0]), [run]) == 0.0


def test_error_bars_of_several_runs_are_standard_errors_of_their_mean():
    runs = [summary(accuracy, None, 2, test_images=400) for accuracy in (70.0, 71.0, 72.0, 73.0)]
    # The sample standard deviation of 70, 71, 72, 73 is sqrt(5 / 3).
    expected = pytest.approx((5 / 3) ** 0.5 / 2)
    assert error_bars(size_figure(runs).axes[0]) == [(student_color(0), expected), (student_color(1), expected)]


def test_a_summary_without_a_number_of_images_has_no_error_bars():
    axes = size_figure([summary(70.0, 60.0)]).axes[0]
    assert error_bars(axes) == [] and axes.get_title() == ""


def test_values_are_under_the_pointer():
    run = summary(80.0, 50.0, 1, test_images=400, ensemble={"parameters": 1_234_567, "flops": 2 * 10**8})
    parameters, flops = ElementTree.fromstring(svg(lambda: size_figure([run]), "sizes"))
    assert set(titles(parameters)) == {
        "student 1 alone: 50.00 ± 2.50 %\n1,000,000 parameters",
        "student 1 in the family: 80.00 ± 2.00 %\n1,000,000 parameters",
        "ensemble: 81.00 ± 1.96 %\n1,234,567 parameters",
    }
    assert "ensemble: 81.00 ± 1.96 %\n200,000,000 FLOPs" in titles(flops)


def test_the_ensemble_has_a_line_and_a_star_only_if_its_size_is_known():
    def stars(**fields):
        return [line for line in size_figure([summary(70.0, None, **fields)]).axes[0].lines if line.get_marker() == "*"]

    assert stars() == stars(ensemble=None) == stars(ensemble={"parameters": None}) == []
    (star,) = stars(ensemble={"parameters": 5})
    assert (star.get_xdata()[0], star.get_ydata()[0], star.get_color()) == (5, 71.0, ENSEMBLE)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_any_number_of_students_is_drawn(count):
    root = ElementTree.fromstring(svg(lambda: size_figure([summary(70.0, 60.0, count, test_images=9)]), "sizes"))
    assert len(titles(root[0])) == 2 * count


def test_students_differ_by_colour_or_marker():
    assert len({(student_color(j), student_marker(j)) for j in range(78)}) == 78


@pytest.mark.parametrize("background", ["#ffffff", "#111111"])
def test_colours_have_contrast_with_light_and_dark_pages(background):
    """Contrast of WCAG 2, which demands 3 for parts of figures."""

    def luminance(color: str) -> float:
        shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for color in STUDENT_COLORS:
        low, high = sorted((luminance(color), luminance(background)))
        assert (high + 0.05) / (low + 0.05) >= 3, color


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (900, 1_100_000, [1e3, 1e4, 1e5, 1e6]),
        (2e4, 4e5, [3e4, 1e5, 3e5]),
        (15_000, 90_000, [1.5e4, 2e4, 3e4, 4e4, 5e4, 7e4]),
        (200_000, 280_000, [2e5, 2.2e5, 2.4e5, 2.6e5, 2.8e5]),
        (0.4, 3, [0.5, 1, 2]),
        (1e-6, 1e6, [1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6]),
    ],
)
def test_a_logarithmic_axis_has_three_to_seven_round_numbers(low, high, ticks):
    assert round_numbers(low, high) == pytest.approx(ticks)
