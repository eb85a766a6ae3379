"""Contents of figures, for few and many classes and networks."""

import pytest
import torch

from oekd_fast.common.text import shortened
from oekd_fast.figures.curves import curve_figure
from oekd_fast.figures.plotting import png
from oekd_fast.figures.sizes import of_students, size_figure
from oekd_fast.paper.expected import paper_results
from oekd_fast.reporting.calibration import calibrate
from oekd_fast.reporting.cam_figures import CamPanels, cam_figure
from oekd_fast.reporting.prediction_figures import agreement_figure, class_figure, reliability_figure


def summary(accuracy: float, baseline: float | None) -> dict:
    students = [
        {"parameters": 10**6 // (j + 1), "flops": 10**8 // (j + 1), "accuracy": accuracy, "baseline_accuracy": baseline}
        for j in range(5)
    ]
    return {"students": students, "ensemble_accuracy": accuracy + 1}


def labels(figure) -> list[str]:
    return sorted(text.get_text() for text in figure.legends[0].get_texts())


def test_size_figure_shows_the_results_of_the_paper_and_the_spread():
    runs = [summary(70.0, 60.0), summary(72.0, 62.0)]
    figure = size_figure(runs, paper_results("cifar100", "resnet110", 5, "oekd"))
    assert labels(figure) == [
        "each alone, mean of 2 runs", "ensemble, mean of 2 runs", "paper: as a family", "paper: each alone",
        "paper: ensemble", "trained as a family, mean of 2 runs",
    ]  # fmt: skip
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]
    assert of_students(runs, "accuracy")[0] == (71.0, pytest.approx(2**0.5))


def test_size_figure_without_baselines_has_no_line_for_them():
    assert labels(size_figure([summary(70.0, None)])) == ["ensemble", "trained as a family"]
    assert of_students([summary(70.0, 60.0), summary(70.0, None)], "baseline_accuracy") == []


def test_curves_of_runs_that_stopped_early_end_with_the_shortest():
    def run(epochs):
        lines = [
            {
                "epoch": epoch,
                "train": {"ce": [1.0 / epoch], "kd": [0.5]},
                "validation": {"accuracy": [10.0 * epoch], "ensemble_accuracy": 50.0},
            }
            for epoch in range(1, epochs + 1)
        ]
        return {"ensemble": lines}

    figure = curve_figure([run(3), run(5)], [2, 4])
    drawn = [line for axes in figure.axes for line in axes.lines if len(line.get_xdata()) > 2]
    assert len(drawn) == 4 and all(list(line.get_xdata()) == [1, 2, 3] for line in drawn)
    assert list(drawn[2].get_ydata()) == [10.0, 20.0, 30.0]


@pytest.mark.parametrize(("classes", "named"), [(3, 3), (20, 20), (1000, 20)])
def test_class_figure_names_at_most_20_classes(classes, named):
    torch.manual_seed(0)
    ensemble = torch.full((classes,), 90.0, dtype=torch.float64)
    students = ensemble - 20 * torch.rand(2, classes, dtype=torch.float64)
    students[1, 1] = 0.0
    ensemble[2] = students[0, 2] = students[1, 2] = float("nan")
    figure = class_figure([f"class {c}" for c in range(classes)], students, ensemble)
    ticks = [tick.get_text() for tick in figure.axes[1].get_yticklabels()]
    assert len(ticks) == named and ticks[0] == "class 1"
    assert ("class 2" in ticks) == (classes <= 20)
    assert png(lambda: figure).startswith(b"\x89PNG")


def test_every_network_has_a_reliability_diagram_with_its_ece():
    right = torch.arange(10) % 2 == 0
    calibrations = {f"network {i}": calibrate(torch.full((10,), 0.5 + i / 20), right) for i in range(6)}
    titles = [axes.get_title() for axes in reliability_figure(calibrations).axes]
    assert titles[:6] == [f"network {i}: ECE {5 * i:.2f} %" for i in range(6)]


def test_agreement_figure_has_a_number_in_every_cell():
    figure = agreement_figure(["one", "two"], torch.tensor([[100.0, 87.25], [87.25, 100.0]]))
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["100.0", "100.0", "87.2", "87.2"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_cam_figure_shows_true_and_predicted_classes(channels):
    images = torch.randint(256, (2, channels, 6, 6), dtype=torch.uint8)
    network = CamPanels("student 2", torch.rand(2, 6, 6), torch.tensor([0, 0]), torch.tensor([0.5, 0.254]))
    figure = cam_figure(images, torch.tensor([0, 1]), ["cat", "a class with a very long name"], [network])
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["true: cat", "✓ cat (50 %)", "true: a class with a ve…", "✗ cat (25 %)"]
    assert [axes.texts[0].get_text() for axes in figure.axes[:2]] == ["image", "student 2"]
    assert len(shortened("a" * 30, 18)) == 18
