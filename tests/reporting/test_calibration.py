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
