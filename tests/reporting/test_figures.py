"""Contents of figures, for few and many classes and networks."""

import pytest
import torch

from oekd_fast.figures.plotting import png
from oekd_fast.reporting.calibration import calibrate
from oekd_fast.reporting.cam_figures import CamPanels, cam_figure
from oekd_fast.reporting.prediction_figures import agreement_figure, class_figure, reliability_figure


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
    assert titles == ["true: cat", "✓ cat 50 %", "true: a class with…", "✗ cat 25 %"]
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["image", "student 2"]
