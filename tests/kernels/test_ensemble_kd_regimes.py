"""The Triton kernels of the ensemble distillation loss in every regime, in Triton's interpreter."""

import math
from itertools import cycle

import pytest
import torch

from oekd_fast import EnsembleKDOutput

from ..conftest import INTERPRETED, batch
from ..support import oracle

pytest.importorskip("triton", reason="Triton is not installed")

from oekd_fast.kernels.ensemble_kd import problem as problems

from ..support.ensemble_kd_launches import CLASSES, PLANS, UNREAD, case, problem, run

pytestmark = pytest.mark.skipif(
    not INTERPRETED, reason="tests/losses/test_ensemble_kd_gpu.py tests the kernels on a GPU"
)


# The resident and the streamed kernel are compiled for each small integer, and for other temperatures; the plans of a
# kernel share that code.
TEMPERATURES = [(name, t) for name in ("rows", "chunks") for t in (1.0, 2.0, 3.0, 4.0, 2.5)]
TEMPERATURES += [("one row", 2.0), ("wide", 2.5), ("one chunk", 2.5), ("chunks of one tile", 2.0)]


@pytest.mark.parametrize("name, temperature", TEMPERATURES)
def test_every_regime_is_accurate_at_every_temperature(name, temperature):
    logits, target = case()
    result, grads = run(problem(logits, target, temperature=temperature), PLANS[name])
    output = EnsembleKDOutput(*result.statistics)
    oracle.check(output, grads, logits, target, temperature=temperature, orders=4)


@pytest.mark.parametrize("name", PLANS)
def test_every_regime_reads_device_scalars(name):
    logits, target = case(rows=3)
    numbers = {"temperature": 8.0, "ce_weight": 0.25, "kd_weight": 2.25}  # exact in fp32, as is a division by 8
    values = torch.tensor(list(numbers.values()))
    options = {"label_smoothing": 0.2, "detach_ensemble": False}
    from_tensor = problem(logits, target, device_scalars=values, **options, **UNREAD)
    result, grads = run(from_tensor, PLANS[name])
    expected, expected_grads = run(problem(logits, target, **options, **numbers), PLANS[name])
    assert all(torch.equal(a, b) for a, b in zip(result.statistics, expected.statistics, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))
    # A replayed graph reads the current values of the tensor.
    values.copy_(torch.tensor([2.0, 0.5, 1.5]))
    result, grads = run(problem(logits, target, device_scalars=values, **UNREAD), PLANS[name])
    now = {"temperature": 2.0, "ce_weight": 0.5, "kd_weight": 1.5, "orders": 4}
    oracle.check(EnsembleKDOutput(*result.statistics), grads, logits, target, **now)


@pytest.mark.parametrize("values", [[0.0, 0.7, 0.15], [math.nan, 0.7, 0.15], [2.5, 0.7, math.nan]], ids=str)
@pytest.mark.parametrize("name", ["rows", "chunks"])
def test_an_invalid_device_scalar_makes_the_loss_nan(name, values):
    logits, target = case()
    result, _ = run(problem(logits, target, device_scalars=torch.tensor(values), **UNREAD), PLANS[name])
    assert result.loss.isnan() and result.ce.isfinite().all()
    assert result.kd.isnan().all() or values[0] == 2.5


# Both kernels run both dtypes.
@pytest.mark.parametrize("name, dtype", zip(PLANS, cycle([torch.bfloat16, torch.float16]), strict=False))
def test_every_regime_with_every_option_in_half_precision(name, dtype):
    logits, target = case(dtype=dtype)
    weights = torch.tensor([0.2, 0.5, 0.3])
    options = {"label_smoothing": 0.2, "ce_weight": 0.3, "kd_weight": 2.0}
    given = problem(logits, target, weights, mean=False, **options)
    result, grads = run(given, PLANS[name], grad_scale=torch.tensor([8.0]))
    options |= {"ensemble_weights": weights, "reduction": "sum"}
    oracle.check(EnsembleKDOutput(*result.statistics), None, logits, target, orders=4, **options)
    oracle.Expected(logits, target, upstream=8.0, orders=4, **options).check_grads(grads)


@pytest.mark.parametrize("name", PLANS)
def test_minus_infinity_in_whole_tiles_and_chunks(name):
    logits, target = case()
    for z in logits:
        z[:, :17] = -math.inf
    logits[1][:, 20:24] = -math.inf
    target = torch.where(target == -100, target, 24 + target % 6)
    result, grads = run(problem(logits, target), PLANS[name])
    oracle.check(EnsembleKDOutput(*result.statistics), grads, logits, target, orders=4)


@pytest.mark.parametrize("name", PLANS)
def test_the_loss_does_not_depend_on_whether_gradients_are_computed(name):
    logits, target = case()
    alone, _ = run(problem(logits, target), PLANS[name], with_grads=False)
    both, _ = run(problem(logits, target), PLANS[name])
    assert all(torch.equal(a, b) for a, b in zip(alone.statistics, both.statistics, strict=True))
    assert alone.counted == (target != -100).sum()


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows(name, rows):
    logits, target = batch(3, rows, CLASSES)
    result, grads = run(problem(logits, target), PLANS[name])
    if rows:
        oracle.check(EnsembleKDOutput(*result.statistics), grads, logits, target, orders=4)
    else:
        assert not any(statistic.any() for statistic in result.statistics) and result.counted == 0


@pytest.mark.parametrize("name", PLANS)
def test_an_invalid_label_makes_the_cross_entropy_nan(name):
    logits, target = case()
    target[0], target[2] = CLASSES, -(2**62)
    result, grads = run(problem(logits, target), PLANS[name])
    assert result.loss.isnan() and result.ce.isnan().all() and result.ensemble_ce.isnan()
    assert result.kd.isfinite().all()
    # The other rows are counted, and no student is correct in these two.
    fine = target.clone()
    fine[[0, 2]] = -100
    without, _ = run(problem(logits, fine), PLANS[name], with_grads=False)
    assert torch.equal(result.correct, without.correct) and result.counted == without.counted + 2
    assert all(grad[[1, 3, 4]].isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", PLANS)
def test_repeated_launches_return_equal_bits(name):
    logits, target = case()
    first, first_grads = run(problem(logits, target), PLANS[name])
    again, grads = run(problem(logits, target), PLANS[name])
    assert all(torch.equal(a, b) for a, b in zip(first.statistics, again.statistics, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first_grads, grads, strict=True))


@pytest.mark.parametrize("name", ["rows", "one row", "chunks"])
def test_rows_counted_before_the_launch_give_the_same_bits(name, monkeypatch):
    logits, target = case()
    expected, expected_grads = run(problem(logits, target), PLANS[name])
    monkeypatch.setattr(problems, "MOST_ROWS_COUNTED", 2)
    result, grads = run(problem(logits, target), PLANS[name])
    assert all(torch.equal(a, b) for a, b in zip(result.statistics, expected.statistics, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


@pytest.mark.parametrize("name", PLANS)
def test_without_a_target(name):
    logits, _ = case()
    result, grads = run(problem(logits, None, ce_weight=0.0), PLANS[name])
    oracle.check(EnsembleKDOutput(*result.statistics), grads, logits, None, ce_weight=0.0, orders=4)
    assert result.counted == len(logits[0])
