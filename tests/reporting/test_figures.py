"""Contents of figures, for few and many classes and networks."""

import base64
import io
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from oekd_fast.data import Augmentation, ImageDataset, Split
from oekd_fast.figures.latency import LatencyCurve, latency_figure
from oekd_fast.figures.plotting import png
from oekd_fast.figures.svg import svg
from oekd_fast.reporting.calibration import calibrate
from oekd_fast.reporting.cam_figures import CamPanels, cam_figure
from oekd_fast.reporting.image_figures import worst_figure
from oekd_fast.reporting.prediction_figures import agreement_figure, class_figure, reliability_figure
from oekd_fast.reporting.predictions import Predictions
from oekd_fast.reporting.worst_images import worst_images


def parts_of(figure) -> list[ElementTree.Element]:
    """Return the ``<svg>`` of each panel."""
    return list(ElementTree.fromstring(svg(figure, "a figure")))


def titles(root: ElementTree.Element) -> list[str]:
    """Return the texts under the pointer."""
    return [title.text for title in root.iter("title")]


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


def test_the_accuracies_of_a_class_are_under_the_pointer():
    students = torch.tensor([[90.0, 50.0], [80.0, float("nan")]])
    figure = class_figure(["cat", "dog"], students, torch.tensor([95.0, float("nan")]))
    gaps, rows = parts_of(figure)
    assert titles(gaps) == ["student 1, cat: +5.00 points", "student 2, cat: +15.00 points"]
    assert titles(rows)[0] == "cat\nstudent 1: 90.00 %\nstudent 2: 80.00 %\nensemble: 95.00 %"


def test_every_network_has_a_reliability_diagram_with_its_ece():
    right = torch.arange(10) % 2 == 0
    calibrations = {f"network {i}": calibrate(torch.full((10,), 0.5 + i / 20), right) for i in range(6)}
    shown = [axes.get_title() for axes in reliability_figure(calibrations).axes]
    assert shown == [f"network {i}: ECE {5 * i:.2f} %" for i in range(6)]


def test_reliability_diagrams_have_no_bars_of_a_handful_of_images():
    # 3 images below 0.7, 27 from 0.7 to 0.8, of which 18 are correct, and 70 above, all of them correct.
    confidence = torch.tensor([0.5] * 3 + [0.75] * 27 + [0.99] * 70)
    right = torch.arange(100) >= 12
    figure = reliability_figure({"student 2": calibrate(confidence, right)})
    (axes,) = figure.axes
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in axes.patches]
    assert bars == [pytest.approx((7 / 15, 12 / 15, 0.6)), pytest.approx((14 / 15, 1.0, 1.0))]
    assert titles(*parts_of(figure)) == [
        "student 2, confidence 0.47 to 0.80: 30 images\n18 correct: accuracy 60.0 ± 8.9 %\nmean confidence 72.5 %",
        "student 2, confidence 0.93 to 1.00: 70 images\n70 correct: accuracy 100.0 ± 0.0 %\nmean confidence 99.0 %",
    ]


def test_a_reliability_diagram_of_few_images_has_one_bar():
    figure = reliability_figure({"ensemble": calibrate(torch.tensor([0.1, 0.9]), torch.tensor([True, False]))})
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.5]
    assert titles(*parts_of(figure))[0].startswith("ensemble, confidence 0.07 to 0.93: 2 images\n1 correct")


def test_agreement_figure_has_a_number_in_every_cell():
    figure = agreement_figure(["one", "two"], torch.tensor([[100.0, 87.25], [87.25, 100.0]]))
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["100.0", "100.0", "87.2", "87.2"]
    root = ElementTree.fromstring(svg(figure, "agreement"))
    assert titles(root)[1] == "one and two: the same class for 87.25 % of the test images" and len(titles(root)) == 4
    assert len(root.findall(".//path[@style='fill:#0072b2;fill-opacity:0.6']")) == 2  # the darkest cells


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_cam_figure_shows_true_and_predicted_classes(channels):
    images = torch.randint(256, (2, channels, 6, 6), dtype=torch.uint8)
    network = CamPanels("student 2", torch.rand(2, 6, 6), torch.tensor([0, 0]), torch.tensor([0.5, 0.254]))
    figure = cam_figure(images, torch.tensor([0, 1]), ["cat", "a class with a very long name"], [network])
    shown = [axes.get_title() for axes in figure.axes[:4]]
    assert shown == ["true: cat", "✓ cat (50 %)", "true: a class with…", "✗ cat (25 %)"]
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["image", "student 2"]
    assert titles(parts_of(figure)[0]) == ["student 2\ntrue: cat\npredicted: cat, probability 50.0 %"]


LABELS = torch.tensor([0, 1, 1, 2, 0])
LOGITS = torch.tensor(
    [[0.0, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 3.0], [-1.0, 3.0, 0.0]]
)  # images 0, 2 and 4 are wrong; 2 has the highest loss, then 4, then 0


@pytest.fixture
def predictions() -> Predictions:
    """Predictions of a student that makes mistakes and of an ensemble that makes none."""
    logits = torch.stack((LOGITS, 9.0 * F.one_hot(LABELS, 3)))
    best = logits.softmax(dim=2).max(dim=2)
    loss = F.cross_entropy(logits.flatten(0, 1), LABELS.repeat(2), reduction="none").view(2, 5)
    return Predictions(("student 1", "ensemble"), LABELS, best.indices, best.values, loss)


def dataset_of(images: torch.Tensor) -> ImageDataset:
    split = Split(images, LABELS)
    return ImageDataset("toy", split, split, split, ("cat", "dog", "bird"), Augmentation(pad=0, flip=False))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_worst_images_are_confident_and_wrong(predictions, channels):
    images = torch.randint(256, (5, channels, 6, 6), dtype=torch.uint8)
    dataset = dataset_of(images)
    worst = [worst_images(predictions, name, dataset, 2) for name in predictions.names]
    assert worst[0].rows.tolist() == [2, 4] and worst[0].predicted.tolist() == [2, 1] and len(worst[1].rows) == 0
    assert torch.equal(worst[0].images, images[[2, 4]])
    assert worst_images(predictions, "student 1", dataset, 9).rows.tolist() == [2, 4, 0]
    student, ensemble = parts_of(worst_figure(["cat", "dog", "a class with a long name"], worst))
    assert titles(student) == [
        "test image 3, loss 5.01\ntrue: dog, probability 0.66 %\n"
        "predicted: a class with a long name, probability 98.7 %",
        "test image 5, loss 4.07\ntrue: cat, probability 1.7 %\npredicted: dog, probability 93.6 %",
    ]
    shown = [element.text for element in student.iter("text")]
    assert shown == ["✗ a class … (99 %)", "true: dog", "✗ dog (94 %)", "true: cat", "student 1"]
    assert [element.text for element in ensemble.iter("text")] == ["no wrong predictions", "ensemble"]
    # The pixels are those of the data set.
    first = next(student.iter("image")).get("href").removeprefix("data:image/png;base64,")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(first))).convert("RGB"))
    expected = images[2].expand(3, 6, 6).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, expected)


def test_an_unknown_network_has_no_worst_images(predictions):
    dataset = dataset_of(torch.zeros(5, 1, 6, 6, dtype=torch.uint8))
    with pytest.raises(ValueError, match="name: expected one of student 1, ensemble, got student 2"):
        worst_images(predictions, "student 2", dataset, 2)


def test_latencies_are_under_the_pointer():
    curves = [
        LatencyCurve("eager, 1 thread", [2.0, 1.0], [3.0, 1.5], [False, True], ensemble=4.0),
        LatencyCurve("onnx, 1 thread", [1.0, 0.5], [1.0, 0.5], [False, False]),
    ]
    (panel,) = parts_of(latency_figure([90.0, 80.0], 95.0, {"batch 1": curves}))
    assert titles(panel) == [
        "student 1: 90.00 %\neager, 1 thread: median 2 ms, 95th percentile 3 ms",
        "student 2: 80.00 %\neager, 1 thread: median 1 ms, 95th percentile 1.5 ms\n"
        "not measurably faster than a larger student",
        "ensemble: 95.00 %\neager, 1 thread: median 4 ms",
        "student 1: 90.00 %\nonnx, 1 thread: median 1 ms, 95th percentile 1 ms",
        "student 2: 80.00 %\nonnx, 1 thread: median 0.5 ms, 95th percentile 0.5 ms",
    ]
