"""Sums on the device against plain means, and the first loss that is not finite."""

from unittest.mock import Mock

import pytest
import torch

from oekd_fast import ensemble_kd_loss
from oekd_fast.common import devices
from oekd_fast.losses import reference
from oekd_fast.losses.calls import EnsembleKDCall, KDOptions
from oekd_fast.training.metrics import RunningMetrics


def outputs(sizes, students=3, classes=7):
    generator = torch.Generator().manual_seed(0)
    for rows in sizes:
        logits = torch.randn(students, rows, classes, generator=generator)
        target = torch.randint(classes, (rows,), generator=generator)
        yield rows, logits, target, ensemble_kd_loss(logits, target)


def test_means_weight_batches_by_their_images():
    metrics = RunningMetrics(3, torch.device("cpu"))
    batches = list(outputs([4, 9, 1]))
    for rows, _, _, output in batches:
        metrics.update(output, rows, torch.tensor(0.5 * rows), output.loss)
    whole = ensemble_kd_loss(torch.cat([b[1] for b in batches], dim=1), torch.cat([b[2] for b in batches]))
    read = metrics.read()
    assert read.images == 14 and read.first_bad_step is None
    assert read.loss == pytest.approx(whole.loss.item(), rel=1e-6)
    assert read.ce == pytest.approx(whole.ce.tolist(), rel=1e-6)
    assert read.kd == pytest.approx(whole.kd.tolist(), rel=1e-5)
    assert read.ensemble_ce == pytest.approx(whole.ensemble_ce.item(), rel=1e-6)
    assert read.feature == pytest.approx(0.5 * (16 + 81 + 1) / 14)
    *students, ensemble = (100 * whole.correct / 14).tolist()
    assert read.accuracy == pytest.approx(students) and read.ensemble_accuracy == pytest.approx(ensemble)


@pytest.mark.parametrize("rows", [13, torch.tensor(13)], ids=["int", "tensor"])
@pytest.mark.parametrize("counts_images", [True, False])
def test_sums_are_exact_products_added_in_float64(rows, counts_images):
    (_, _, _, output), *_ = outputs([13])
    metrics = RunningMetrics(3, torch.device("cpu"), counts_images=counts_images)
    expected = torch.zeros_like(metrics.sums)
    for feature in (torch.tensor(0.3), None, torch.tensor(0.7)):
        metrics.update(output, rows, feature, 2 * output.loss)
        scalars = [2 * output.loss, torch.zeros(()) if feature is None else feature, output.ensemble_ce]
        losses = torch.cat((torch.stack(scalars), output.ce, output.kd)).double()
        counts = torch.tensor([13.0 * counts_images, 1.0, 0.0], dtype=torch.float64)
        expected += torch.cat((counts, 13.0 * losses, output.correct.double()))
    assert torch.equal(metrics.sums, expected)


def test_batches_that_are_kept_give_the_same_sums(monkeypatch):
    direct = RunningMetrics(3, torch.device("cpu"))
    monkeypatch.setattr(devices, "has_float64", lambda device: False)
    kept = RunningMetrics(3, torch.device("cpu"))
    for rows, _, _, output in outputs([4, 9, 1]):
        for metrics in (direct, kept):
            metrics.update(output, rows, None if rows == 9 else output.loss, output.loss * float("inf"))
    assert kept.read() == direct.read() and torch.equal(kept.sums.nan_to_num(7.0), direct.sums.nan_to_num(7.0))
    assert kept.read().first_bad_step == 1


def test_the_loss_so_far_is_that_of_the_batches_before():
    metrics = RunningMetrics(3, torch.device("cpu"))
    assert metrics.loss_so_far() is None
    for rows, _, _, output in outputs([4, 9]):
        metrics.update(output, rows, None, output.loss)
        assert metrics.loss_so_far() == metrics.read().loss
    metrics.reset()
    assert metrics.loss_so_far() is None


def test_the_loss_so_far_is_unknown_where_reading_it_would_wait():
    on_another_device = RunningMetrics(3, torch.device("meta"))
    of_two_ranks = RunningMetrics(3, torch.device("cpu"), Mock(size=2))
    of_two_ranks.sums.fill_(1.0)
    assert on_another_device.loss_so_far() is None and of_two_ranks.loss_so_far() is None


def test_the_first_step_with_a_bad_loss_is_kept():
    metrics = RunningMetrics(3, torch.device("cpu"))
    (batch,) = outputs([4])
    rows, _, _, output = batch
    for loss in (1.0, 2.0, float("inf"), 1.0, float("nan")):
        metrics.update(output, rows, None, torch.tensor(loss))
    assert metrics.read().first_bad_step == 3
    metrics.reset()
    assert metrics.read().images == 0 and metrics.read().first_bad_step is None


@pytest.mark.parametrize("label, blamed", [(7, True), (-5, True), (6, False)])
def test_labels_out_of_range_are_distinguished_from_divergence(label, blamed):
    # The reference without the checks of the public function gives what a GPU gives, which does not check labels.
    rows, logits, target, _ = next(outputs([4]))
    target[2] = label
    metrics = RunningMetrics(3, torch.device("cpu"))
    output = reference.ensemble_kd(EnsembleKDCall.of(list(logits), target, KDOptions()))
    metrics.update(output, rows, None, output.loss)
    assert metrics.read().labels_out_of_range == blamed
    metrics.reset()
    output = reference.ensemble_kd(EnsembleKDCall.of([z * float("nan") for z in logits], target, KDOptions()))
    metrics.update(output, rows, None, output.loss)
    assert metrics.read().first_bad_step == 1 and not metrics.read().labels_out_of_range
