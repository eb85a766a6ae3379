"""The ensemble distillation loss on every implementation, against the fp64 oracle and its definition."""

import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oekd_fast import ensemble_kd_value_and_grad

from ..conftest import batch, fewer_of, rows_of
from ..support import oracle
from ..support.kd_cases import CASES, DTYPES, SIZES, case, generator, identical, ignoring

pytestmark = pytest.mark.usefixtures("one_thread")

# Two cases where naive PyTorch happens to be exact, while the reference, in another order of operations, is not.
LUCKY = (("-inf, another student each row", torch.float16), ("labels smoothed away", torch.float16))


@cache
def expected(name, dtype):
    logits, target, options = case(name, dtype)
    return oracle.Expected(logits, target, orders=8 if (name, dtype) in LUCKY else 1, **options)


@pytest.mark.parametrize("name", CASES)
def test_reference_in_fp64_is_the_oracle(name):
    logits, target, options = case(name, torch.float64)
    output, grads = ensemble_kd_value_and_grad(logits, target, backend="reference", **options)
    assert output.loss.dtype == output.ce.dtype == output.kd.dtype == output.ensemble_ce.dtype == torch.float64
    if name == "one class":  # the truth is 0
        assert output.loss == 0 and not any(grad.any() for grad in grads)
    elif name == "identical students":
        truth = oracle.ensemble_kd(logits, target, **options)
        assert oracle.error(output.loss, truth.loss) <= oracle.FP64_ROUNDING
        assert oracle.error(oracle.stack(grads), truth.grads) <= oracle.FP64_ROUNDING
    else:
        oracle.check(output, grads, logits, target, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("one class", "identical students")])
def test_is_as_exact_as_naive_pytorch(value_and_grad, name, dtype):
    logits, target, options = case(name, DTYPES[dtype])
    output, grads = value_and_grad(logits, target, **options)
    expected(name, DTYPES[dtype]).check(output, grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", SIZES)
def test_class_counts(value_and_grad, classes, dtype):
    logits, target, options = case(classes, DTYPES[dtype])
    fewer, labels = fewer_of(value_and_grad, logits, target)
    output, grads = value_and_grad(fewer, labels, **options)
    allowed = expected(classes, DTYPES[dtype]) if fewer is logits else oracle.Expected(fewer, labels)
    allowed.check(output, grads)


@pytest.mark.parametrize("temperature", [2.0, 2.5])
def test_one_class_gives_zero_loss_and_gradients(value_and_grad, temperature):
    logits, _ = batch(classes=1)
    output, grads = value_and_grad(logits, torch.zeros(7, dtype=torch.int64), temperature=temperature)
    assert output.loss == 0 and not output.kd.any() and not output.ce.any()
    assert output.correct.tolist() == [7] * 6
    assert not any(grad.any() for grad in grads)


def test_identical_students_have_no_divergence(value_and_grad):
    logits, target, _ = identical()
    output, grads = value_and_grad(logits, target)
    truth = oracle.ensemble_kd(logits, target)
    assert oracle.error(output.loss, truth.loss) <= oracle.EPSILON
    assert oracle.error(output.ce, truth.ce) <= oracle.EPSILON
    # KL is a cross-entropy minus an entropy. Their difference may not exceed their rounding.
    probabilities = F.softmax(logits[0].double() / 2, dim=1)
    entropy = -(probabilities * probabilities.log()).sum(dim=1).mean()
    assert (output.kd >= 0).all() and (output.kd <= 4 * oracle.EPSILON * entropy).all()
    _, grads = value_and_grad(logits, None, ce_weight=0.0)
    terms = 0.15 * 2 * probabilities / len(target)  # the gradient is the difference of two of these, which is 0
    naive = oracle.naive(logits, None, ce_weight=0.0).grads
    for grad, plain in zip(oracle.stack(grads), naive, strict=True):
        assert np.linalg.norm(grad) <= np.linalg.norm(plain) + oracle.EPSILON * terms.norm()


def test_one_student_has_a_divergence_of_exactly_zero(value_and_grad):
    logits, target = batch(students=1)
    output, grads = value_and_grad(logits, target)
    assert output.kd.tolist() == [0.0]
    _, alone = value_and_grad(logits, target, kd_weight=0.0)
    assert oracle.error(oracle.stack(grads), oracle.stack(alone)) <= oracle.EPSILON


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_and_gradients_are_zero_if_every_label_is_ignored(value_and_grad, reduction):
    logits, _ = batch()
    output, grads = value_and_grad(logits, torch.full((7,), -100), reduction=reduction)
    for statistic in output:
        assert not statistic.any()
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 3e38])
def test_an_ignored_row_may_hold_anything(value_and_grad, garbage):
    logits, target, _ = ignoring()
    expected, expected_grads = value_and_grad(logits, target)
    for z in logits:
        z[::3] = garbage
    output, grads = value_and_grad(logits, target)
    assert all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))
    assert all((grad[::3] == 0).all() for grad in grads)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("classes", [1, 10])
def test_empty_batch(value_and_grad, reduction, classes):
    logits = [torch.empty(0, classes) for _ in range(3)]
    output, grads = value_and_grad(logits, torch.empty(0, dtype=torch.int64), reduction=reduction)
    for statistic in output:
        assert not statistic.any()
    assert [tuple(t.shape) for t in output] == [(), (3,), (3,), (), (4,)]
    assert [grad.shape for grad in grads] == [(0, classes)] * 3


def test_a_target_with_probability_zero_costs_infinity_and_has_a_finite_gradient(value_and_grad):
    logits, target = batch(rows=3)
    logits[1][0, target[0]] = -math.inf
    output, grads = value_and_grad(logits, target, kd_weight=0.0)
    truth = oracle.ensemble_kd(logits, target, kd_weight=0.0)
    assert output.ce.tolist()[1] == math.inf and output.loss == math.inf
    assert oracle.error(output.ce[[0, 2, 3, 4]], truth.ce[[0, 2, 3, 4]]) <= oracle.EPSILON
    assert oracle.error(oracle.stack(grads), truth.grads) <= oracle.EPSILON


def test_students_with_weight_zero_are_excluded_even_if_their_logits_are_minus_infinity(value_and_grad):
    logits, target = batch(students=3, classes=9)
    logits[1][:, 4:] = -math.inf
    target %= 4
    weights = torch.tensor([0.5, 0.0, 0.5])
    output, grads = value_and_grad(logits, target, ensemble_weights=weights)
    truth = oracle.ensemble_kd(logits, target, ensemble_weights=weights)
    # The ensemble gives probability to classes that this student excludes, so its divergence and the loss are infinite.
    assert output.kd[1] == math.inf == output.loss
    # The naive expression replaces -inf by -1e5, which leaves the results of the other students right.
    naive = oracle.naive(logits, target, ensemble_weights=weights)
    allowed = oracle.error(naive.kd[[0, 2]], truth.kd[[0, 2]]) + oracle.EPSILON
    assert oracle.error(output.kd[[0, 2]], truth.kd[[0, 2]]) <= allowed
    allowed = oracle.error(naive.ensemble_ce, truth.ensemble_ce) + oracle.EPSILON
    assert oracle.error(output.ensemble_ce, truth.ensemble_ce) <= allowed
    allowed = oracle.error(naive.grads, truth.grads) + oracle.EPSILON
    assert oracle.error(oracle.stack(grads), truth.grads) <= allowed


def test_default_weights_are_equal_weights(value_and_grad):
    logits, target = batch(students=4)
    output, grads = value_and_grad(logits, target)
    weighted, weighted_grads = value_and_grad(logits, target, ensemble_weights=torch.full((4,), 0.25))
    assert oracle.error(output.loss, weighted.loss) <= oracle.EPSILON
    assert oracle.error(oracle.stack(grads), oracle.stack(weighted_grads)) <= oracle.EPSILON


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_any_floating_dtype(value_and_grad, dtype):
    logits, target = batch(students=3)
    weights = torch.tensor([0.5, 0.25, 0.25])  # exact in each dtype
    expected, expected_grads = value_and_grad(logits, target, ensemble_weights=weights)
    output, grads = value_and_grad(logits, target, ensemble_weights=weights.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip((*output, *grads), (*expected, *expected_grads), strict=True))


# -- single statements of the formula


def test_distillation_carries_the_square_of_the_temperature(value_and_grad):
    logits, _ = batch(rows=5)
    mean = torch.stack(logits).double().mean(dim=0)
    output, _ = value_and_grad(logits, None, temperature=3.0, ce_weight=0.0)
    teacher = F.softmax(mean / 3, dim=1)
    kl = [F.kl_div(F.log_softmax(z.double() / 3, dim=1), teacher, reduction="batchmean") for z in logits]
    assert oracle.error(output.kd, 9 * torch.stack(kl)) <= 4 * oracle.EPSILON


def test_students_are_summed_and_rows_averaged(value_and_grad):
    logits, target = batch(students=2, rows=6)
    output, grads = value_and_grad(logits, target)
    assert oracle.error(output.loss, 0.7 * output.ce.double().sum() + 0.15 * output.kd.double().sum()) <= oracle.EPSILON
    twice = [torch.cat([z, z]) for z in logits]
    repeated, halved = value_and_grad(twice, torch.cat([target, target]))
    assert oracle.error(repeated.loss, output.loss) <= oracle.EPSILON
    assert oracle.error(2 * oracle.stack(halved)[:, :6], oracle.stack(grads)) <= oracle.EPSILON
    assert oracle.error([c.tolist() for c in repeated.ce], output.ce) <= oracle.EPSILON


def test_sum_is_mean_times_the_number_of_counted_rows(value_and_grad):
    logits, target, _ = ignoring()
    counted = int((target != -100).sum())
    mean, mean_grads = value_and_grad(logits, target)
    total, total_grads = value_and_grad(logits, target, reduction="sum")
    for name in ("loss", "ce", "kd", "ensemble_ce"):
        assert oracle.error(getattr(total, name), counted * getattr(mean, name).double()) <= 2 * oracle.EPSILON
    assert oracle.error(oracle.stack(total_grads), counted * oracle.stack(mean_grads)) <= 2 * oracle.EPSILON
    assert torch.equal(total.correct, mean.correct)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_is_pytorchs(value_and_grad, smoothing, reduction):
    logits, target, _ = ignoring()
    output, _ = value_and_grad(logits, target, label_smoothing=smoothing, reduction=reduction)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    scores = [z.double() for z in logits]
    expected = [F.cross_entropy(z, target, **options) for z in scores]
    assert oracle.error(output.ce, torch.stack(expected)) <= 2 * oracle.EPSILON
    ensemble = F.cross_entropy(torch.stack(scores).mean(dim=0), target, **options)
    assert oracle.error(output.ensemble_ce, ensemble) <= 2 * oracle.EPSILON


@pytest.mark.parametrize("classes", [7, 1500, 5000])
def test_correct_counts_the_first_largest(value_and_grad, classes):
    # With small integers the mean of four is exact, and there are many ties.
    rows = rows_of(value_and_grad, 300, classes)
    logits = [torch.randint(0, 4, (rows, classes), generator=generator(j)).float() for j in range(4)]
    scores = torch.stack([*logits, torch.stack(logits).mean(dim=0)])
    target = scores[2].argmax(dim=1)
    target[::2] = scores[4].argmax(dim=1)[::2]
    target[::7] = -100
    output, _ = value_and_grad(logits, target)
    assert output.correct.tolist() == (scores.argmax(dim=2) == target).sum(dim=1).tolist()


def test_ensemble_ties_are_those_of_the_plain_mean(value_and_grad):
    # zE is defined as the mean: equal sums give a tie, however 1/5 rounds.
    rows = rows_of(value_and_grad, 2000)
    logits = [torch.randint(0, 3, (rows, 6), generator=generator(j)).float() for j in range(5)]
    target = torch.stack(logits).sum(dim=0).argmax(dim=1)
    output, _ = value_and_grad(logits, target)
    assert output.correct[-1] == rows
