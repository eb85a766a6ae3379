"""Expected calibration error, compared with numbers computed by hand."""

import pytest
import torch

from oekd_fast.reporting.calibration import calibrate


def test_a_hand_computed_example():
    # The bin (0, 0.5] has 0.3 and 0.5, of which one is correct: |0.5 - 0.4| = 0.1. The bin (0.5, 1] has 0.6, 0.8 and
    # 1.0, all correct: |1 - 0.8| = 0.2. The weights are 2/5 and 3/5: 0.04 + 0.12.
    result = calibrate(torch.tensor([0.3, 0.5, 0.6, 0.8, 1.0]), torch.tensor([True, False, True, True, True]), bins=2)
    assert result.share.tolist() == [0.4, 0.6]
    assert result.accuracy.tolist() == [0.5, 1.0]
    assert result.confidence.tolist() == pytest.approx([0.4, 0.8])
    assert result.ece == pytest.approx(16.0)


@pytest.mark.parametrize(("confidence", "right", "ece"), [(1.0, True, 0), (1.0, False, 100), (0.1, True, 90)])
def test_ece_of_equal_predictions(confidence, right, ece):
    assert calibrate(torch.full((7,), confidence), torch.full((7,), right)).ece == pytest.approx(ece)


def test_half_correct_at_confidence_one_half_is_calibrated():
    result = calibrate(torch.full((8,), 0.5), torch.arange(8) % 2 == 0)
    assert result.ece == pytest.approx(0) and len(result.share) == 15
    assert result.accuracy.isnan().sum() == 14


def test_a_bin_includes_its_upper_edge():
    result = calibrate(torch.tensor([0.0, 0.25, 0.5, 0.75]), torch.ones(4, dtype=torch.bool), bins=4)
    assert result.share.tolist() == [0.5, 0.25, 0.25, 0.0]


def test_the_order_of_images_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    confidence, right = torch.rand(500, generator=generator), torch.rand(500, generator=generator) < 0.7
    order = torch.randperm(500, generator=generator)
    assert calibrate(confidence, right).ece == pytest.approx(calibrate(confidence[order], right[order]).ece)


def test_bins_are_merged_until_each_has_enough_images():
    # Bins of a quarter with 1, 0, 2 and 4 images.
    confidence = torch.tensor([0.2, 0.6, 0.7, 0.8, 0.9, 0.9, 1.0])
    result = calibrate(confidence, torch.tensor([True, False, True, True, True, False, True]), bins=4)
    assert result.images == 7
    found = {least: [(b.low, b.high, b.images, b.correct) for b in result.merged(least)] for least in (1, 2, 3, 4, 8)}
    low, middle, high = (0.0, 0.25, 1, 1), (0.5, 0.75, 2, 1), (0.75, 1.0, 4, 3)
    assert found[1] == [low, middle, high]
    assert found[2] == found[3] == [(0.0, 0.75, 3, 2), high]
    assert found[4] == found[8] == [(0.0, 1.0, 7, 5)]
    (whole,) = result.merged(8)
    assert whole.confidence == pytest.approx(5.1 / 7) and whole.accuracy == 5 / 7


@pytest.mark.parametrize("least", [1, 10, 50])
def test_merged_bins_hold_all_images(least):
    generator = torch.Generator().manual_seed(0)
    confidence, right = torch.rand(500, generator=generator) ** 0.2, torch.rand(500, generator=generator) < 0.7
    bins = calibrate(confidence, right).merged(least)
    assert sum(b.images for b in bins) == 500 and sum(b.correct for b in bins) == int(right.sum())
    assert all(b.images >= least and b.low < b.confidence <= b.high for b in bins)
    assert all(low.high <= high.low for low, high in zip(bins[:-1], bins[1:], strict=True))


@pytest.mark.parametrize(
    ("confidence", "message"),
    [
        (torch.empty(0), r"at least one prediction, got \[0\] and \[0\]"),
        (torch.tensor([1.5]), r"probabilities in \[0, 1\], got 1.5 to 1.5"),
        (torch.tensor([float("nan")]), r"probabilities in \[0, 1\], got nan to nan"),
    ],
)
def test_invalid_confidences_are_rejected(confidence, message):
    with pytest.raises(ValueError, match=message):
        calibrate(confidence, torch.ones(len(confidence), dtype=torch.bool))
