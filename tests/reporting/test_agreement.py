"""Agreement and accuracy by class, compared with counts made by hand."""

import torch

from oekd_fast.reporting.agreement import agreement, class_accuracy

PREDICTED = torch.tensor([[0, 1, 2, 0], [0, 1, 0, 1], [2, 2, 2, 2]])
LABELS = torch.tensor([0, 1, 1, 0])


def test_agreement_is_the_share_of_equal_predictions():
    assert agreement(PREDICTED).tolist() == [[100, 50, 25], [50, 100, 0], [25, 0, 100]]


def test_class_accuracy_is_computed_per_class():
    result = class_accuracy(PREDICTED, LABELS, 3)
    assert result[:, :2].tolist() == [[100, 50], [50, 50], [0, 0]]
    assert result[:, 2].isnan().all()


def test_class_accuracies_weighted_by_images_are_the_accuracy():
    weights = torch.bincount(LABELS, minlength=2) / len(LABELS)
    means = class_accuracy(PREDICTED, LABELS, 2) @ weights.double()
    assert torch.equal(means, 100 * (PREDICTED == LABELS).double().mean(dim=1))
