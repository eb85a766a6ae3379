"""The Triton kernels of the loss: every regime, whatever the plan would choose; here in the interpreter."""

import math
from functools import cache, partial

import pytest
import torch

from oekd_fast import EnsembleKDOutput, ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.losses import backends
from oekd_fast.losses import ensemble_kd as loss_functions

from ..conftest import INTERPRETED, TRITON, batch, op_kwargs
from ..support import oracle
from ..support.objectives import OBJECTIVES, Expected, one

pytestmark = [
    pytest.mark.skipif(not TRITON, reason="Triton is not installed"),
    pytest.mark.skipif(not INTERPRETED, reason="on a GPU tests/losses/test_ensemble_kd_gpu.py looks at the same"),
]

if TRITON:
    from oekd_fast.kernels.ensemble_kd import launch as ensemble_kd
    from oekd_fast.kernels.ensemble_kd.plan import (
        VECTOR_BYTES,
        WARP,
        Plan,
        plan_ensemble_kd,
        plan_gradients,
        power_of_2,
    )

    PLANS = {
        "rows": Plan("rows", rows=4, block=32, tiles=1, warps=1, programs_per_sm=1),
        "one row": Plan("resident", rows=1, block=32, tiles=1, warps=1, programs_per_sm=1),
        "wide": Plan("resident", rows=1, block=256, tiles=1, warps=2, programs_per_sm=2),
        "one chunk": Plan("streamed", rows=1, block=32, tiles=1, warps=1, programs_per_sm=1),
        "chunks": Plan("streamed", rows=1, block=8, tiles=2, warps=1, programs_per_sm=2),
        "chunks of one tile": Plan("streamed", rows=1, block=8, tiles=1, warps=1, programs_per_sm=2),
    }
    GRADIENT_PLANS = {
        "rows": Plan("rows", rows=4, block=32, tiles=1, warps=1, programs_per_sm=1),
        "chunks": Plan("streamed", rows=1, block=8, tiles=2, warps=1, programs_per_sm=2),
    }
else:
    PLANS = GRADIENT_PLANS = {}
CLASSES = 30  # less than a tile, and no multiple of one


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """What a launch does not write is NaN, or a number that shows."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(tensor):
        return tensor.fill_(math.nan if tensor.is_floating_point() else -(2**30))

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: poison(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: poison(empty_like(*args, **kwargs)))


def problem(logits, target, ensemble_weights=None, **options):
    values = {
        "temperature": 2.0,
        "ce_weight": 0.7,
        "kd_weight": 0.15,
        "label_smoothing": 0.0,
        "ignore_index": -100,
        "mean": True,
        "detach_ensemble": True,
    } | options
    return ensemble_kd.Problem(logits, target, ensemble_weights, **values)


def run(problem, plan, grad_scale=None, with_grads=True):
    """Loss (all that a launch writes) and gradients; the counters are left as they were found."""
    grads = [torch.empty_like(z) for z in problem.logits] if with_grads else []
    result, launch = ensemble_kd.loss_launch(problem, grads, grad_scale, plan)
    launch.run(problem.device)
    counters = launch.arguments["counters" if plan.regime == "streamed" else "done"]
    assert not counters.any()
    return result, grads


def run_gradients(problem, result, plan, upstream=1.0, of_weights=False):
    grads = [torch.empty_like(z) for z in problem.logits]
    weights_grad = torch.empty(len(grads)) if of_weights else None
    arguments = (problem, grads, torch.tensor(upstream), result.row_statistics, result.counted, weights_grad, plan)
    ensemble_kd.gradients_launch(*arguments).run(problem.device)
    return grads, weights_grad


def case(rows=6, students=3, dtype=torch.float32, classes=CLASSES):
    logits, target = batch(students, rows, classes, dtype=dtype)
    target[1::4] = -100
    return logits, target


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 4.0, 2.5])
@pytest.mark.parametrize("name", PLANS)
def test_every_regime_is_right_at_every_power(name, temperature):
    logits, target = case()
    result, grads = run(problem(logits, target, temperature=temperature), PLANS[name])
    output = EnsembleKDOutput(*result.statistics)
    oracle.check(output, grads, logits, target, temperature=temperature, orders=4)


UNREAD = {"temperature": 0.0, "ce_weight": 0.0, "kd_weight": 0.0}  # beside values in a tensor


@pytest.mark.parametrize("name", PLANS)
def test_every_regime_reads_values_from_a_tensor(name):
    logits, target = case(rows=3)
    numbers = {"temperature": 8.0, "ce_weight": 0.25, "kd_weight": 2.25}  # exact, and so is a division by 8
    values = torch.tensor(list(numbers.values()))
    options = {"label_smoothing": 0.2, "detach_ensemble": False}
    from_tensor = problem(logits, target, device_scalars=values, **options, **UNREAD)
    result, grads = run(from_tensor, PLANS[name])
    expected, expected_grads = run(problem(logits, target, **options, **numbers), PLANS[name])
    assert all(torch.equal(a, b) for a, b in zip(result.statistics, expected.statistics, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))
    # The same launch again, as a graph is replayed: it takes what the tensor holds now.
    values.copy_(torch.tensor([2.0, 0.5, 1.5]))
    result, grads = run(problem(logits, target, device_scalars=values, **UNREAD), PLANS[name])
    now = {"temperature": 2.0, "ce_weight": 0.5, "kd_weight": 1.5, "orders": 4}
    oracle.check(EnsembleKDOutput(*result.statistics), grads, logits, target, **now)


@pytest.mark.parametrize("plan", GRADIENT_PLANS)
@pytest.mark.parametrize("detach", [True, False])
def test_gradients_from_row_statistics_read_values_from_a_tensor(detach, plan):
    logits, target = case()
    numbers = {"temperature": 8.0, "ce_weight": 0.25, "kd_weight": 2.25}  # exact, and so is a division by 8
    given = problem(
        logits, target, detach_ensemble=detach, device_scalars=torch.tensor(list(numbers.values())), **UNREAD
    )
    known = problem(logits, target, detach_ensemble=detach, **numbers)
    came, expected = (
        run_gradients(
            p, run(p, PLANS["one row"], with_grads=False)[0], GRADIENT_PLANS[plan], 1.5, of_weights=not detach
        )
        for p in (given, known)
    )
    assert all(torch.equal(a, b) for a, b in zip(came[0], expected[0], strict=True))
    assert detach or torch.equal(came[1], expected[1])


@pytest.mark.parametrize("values", [[0.0, 0.7, 0.15], [math.nan, 0.7, 0.15], [2.5, 0.7, math.nan]], ids=str)
@pytest.mark.parametrize("name", ["rows", "chunks"])
def test_a_value_in_a_tensor_that_cannot_be_makes_the_loss_nan(name, values):
    logits, target = case()
    result, _ = run(problem(logits, target, device_scalars=torch.tensor(values), **UNREAD), PLANS[name])
    assert result.loss.isnan() and result.ce.isfinite().all()
    assert result.kd.isnan().all() or values[0] == 2.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PLANS)
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
def test_the_loss_alone_is_the_loss_with_gradients(name):
    logits, target = case()
    alone, _ = run(problem(logits, target), PLANS[name], with_grads=False)
    both, _ = run(problem(logits, target), PLANS[name])
    assert all(torch.equal(a, b) for a, b in zip(alone.statistics, both.statistics, strict=True))
    assert alone.counted == (target != -100).sum()


@pytest.mark.parametrize("plan", GRADIENT_PLANS)
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("name", PLANS)
def test_gradients_from_row_statistics(name, detach, plan):
    logits, target = case()
    given = problem(logits, target, detach_ensemble=detach, temperature=3.0)
    result, at_once = run(given, PLANS[name], grad_scale=torch.tensor(2.5))
    grads, _ = run_gradients(given, result, GRADIENT_PLANS[plan], upstream=2.5)
    assert oracle.error(oracle.stack(grads), oracle.stack(at_once)) <= oracle.EPSILON
    if detach:
        oracle.Expected(logits, target, upstream=2.5, temperature=3.0, orders=4).check_grads(grads)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_through_the_ensemble(dtype, weighted):
    # The reference in fp64, which gradcheck confirms, against the same in the logits' dtype.
    logits, target = case(dtype=dtype)
    weights = torch.tensor([0.2, 0.5, 0.3]) if weighted else None
    options = {"detach_ensemble": False, "temperature": 2.5, "label_smoothing": 0.1}

    def gradients(backend, dtype):
        leaves = [z.to(dtype).requires_grad_() for z in logits]
        w = None if weights is None else weights.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
        loss = ensemble_kd_loss(leaves, target, ensemble_weights=w, backend=backend, **options).loss
        loss.backward(torch.tensor(1.5, dtype=loss.dtype))
        return [z.grad for z in leaves], None if w is None else w.grad

    truth, truth_weights = gradients("reference", torch.float64)
    naive, naive_weights = gradients("reference", dtype)
    grads, weights_grad = gradients("triton", dtype)
    allowed = oracle.error(oracle.stack(naive), oracle.stack(truth)) + oracle.EPSILON
    assert oracle.error(oracle.stack(grads), oracle.stack(truth)) <= allowed
    if weighted:
        assert oracle.error(weights_grad, truth_weights) <= oracle.error(naive_weights, truth_weights) + oracle.EPSILON
    # All at once, too.
    _, at_once = ensemble_kd_value_and_grad(
        logits, target, ensemble_weights=weights, grad_scale=torch.tensor(1.5), backend="triton", **options
    )
    assert oracle.error(oracle.stack(at_once), oracle.stack(truth)) <= allowed


def test_gradients_for_the_weights_alone():
    logits, target = case()
    weights = torch.tensor([0.2, 0.5, 0.3], requires_grad=True)
    ensemble_kd_loss(logits, target, ensemble_weights=weights, detach_ensemble=False, backend="triton").loss.backward()
    exact = weights.detach().double().requires_grad_()
    doubles = [z.double() for z in logits]
    ensemble_kd_loss(doubles, target, ensemble_weights=exact, detach_ensemble=False).loss.backward()
    assert oracle.error(weights.grad, exact.grad) <= 4 * oracle.EPSILON


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows(name, rows):
    logits, target = batch(3, rows, CLASSES)
    result, grads = run(problem(logits, target), PLANS[name])
    if rows:
        oracle.check(EnsembleKDOutput(*result.statistics), grads, logits, target, orders=4)
    else:
        assert not any(statistic.any() for statistic in result.statistics) and result.counted == 0


@pytest.mark.parametrize("label", [CLASSES, -(2**62)])
@pytest.mark.parametrize("name", PLANS)
def test_a_label_that_is_no_class_makes_the_cross_entropy_nan_and_reads_nothing(name, label):
    logits, target = case()
    target[0] = label
    result, grads = run(problem(logits, target), PLANS[name])
    assert result.loss.isnan() and result.ce.isnan().all() and result.ensemble_ce.isnan()
    assert result.kd.isfinite().all()
    # The others are counted, and the row is right for nobody.
    fine = target.clone()
    fine[0] = -100
    without, _ = run(problem(logits, fine), PLANS[name])
    assert torch.equal(result.correct, without.correct) and result.counted == without.counted + 1
    assert all(grad[1:].isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", PLANS)
def test_the_same_again_to_the_last_bit(name):
    logits, target = case()
    first, first_grads = run(problem(logits, target), PLANS[name])
    for _ in range(2):
        again, grads = run(problem(logits, target), PLANS[name])
        assert all(torch.equal(a, b) for a, b in zip(first.statistics, again.statistics, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(first_grads, grads, strict=True))


@pytest.mark.parametrize("name", PLANS)
def test_rows_too_many_to_count_in_every_program(name, monkeypatch):
    logits, target = case()
    expected, expected_grads = run(problem(logits, target), PLANS[name])
    monkeypatch.setattr(ensemble_kd, "MOST_ROWS_COUNTED", 2)
    result, grads = run(problem(logits, target), PLANS[name])
    assert all(torch.equal(a, b) for a, b in zip(result.statistics, expected.statistics, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


@pytest.mark.parametrize("name", PLANS)
def test_without_a_target(name):
    logits, _ = case()
    result, grads = run(problem(logits, None, ce_weight=0.0), PLANS[name])
    oracle.check(EnsembleKDOutput(*result.statistics), grads, logits, None, ce_weight=0.0, orders=4)
    assert result.counted == len(logits[0])


# -- other objectives: gates, the ensemble's cross-entropy, external teachers, mixing

RESIDENT = [name for name in PLANS if PLANS[name].regime != "streamed"]


@cache
def objective(name, dtype=torch.float32):
    formula, tensors, arguments = OBJECTIVES[name]
    logits, target = case(dtype=dtype)
    tensors = tensors(3, *logits[0].shape)
    return logits, target, tensors, arguments, Expected(formula, logits, target, tensors)


@pytest.mark.parametrize("plan", RESIDENT)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_in_every_resident_plan(name, plan):
    logits, target, tensors, arguments, expected = objective(name)
    options = {"ensemble_weights": None} | tensors | arguments
    options["mix_probabilities"] = options.pop("mixing_space", "logits") == "probabilities"
    given = problem(logits, target, options.pop("ensemble_weights"), **options)
    grads = [torch.empty_like(z) for z in logits]
    of_rows = torch.empty(len(target), 3) if given.ensemble_learns else None
    result, launch = ensemble_kd.loss_launch(given, grads, plan=PLANS[plan], weights_grad=of_rows)
    launch.run(given.device)
    weights = given.ensemble_weights
    of_weights = None if weights is None or of_rows is None else of_rows if weights.dim() == 2 else of_rows.sum(dim=0)
    expected.check(EnsembleKDOutput(*result.statistics), grads, of_weights)
    assert result.counted == (target != -100).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["hinton", "mutual", "one", "logits and a teacher mixed, T = 2.5"])
def test_objectives_by_autograd(name, dtype):
    logits, target, tensors, arguments, expected = objective(name, dtype)
    leaves = [z.detach().requires_grad_() for z in logits]
    given = {key: t.detach().requires_grad_(key == "ensemble_weights") for key, t in tensors.items()}
    output = ensemble_kd_loss(leaves, target, backend="triton", **given, **arguments)
    output.loss.backward()
    expected.check(output, [z.grad for z in leaves], given["ensemble_weights"].grad if name == "one" else None)


def test_objectives_without_a_target_and_where_a_class_is_excluded():
    logits, _ = batch(3, 5, CLASSES)
    for z in logits:
        z[:, 3::4] = -math.inf
    logits[2][:, 10:] = -math.inf
    mixing = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for mixing_space in ("logits", "probabilities"):
        options = {"mixing": mixing, "mixing_space": mixing_space, "ce_weight": 0.0}
        output, grads = ensemble_kd_value_and_grad(logits, None, backend="triton", **options)
        exact = [z.double() for z in logits]
        truth, right = ensemble_kd_value_and_grad(exact, None, backend="reference", **options)
        assert oracle.error(output.kd, truth.kd) <= 4 * oracle.EPSILON
        assert oracle.error(oracle.stack(grads), oracle.stack(right)) <= 4 * oracle.EPSILON


def test_one_with_its_target_attached():
    logits, target, tensors, arguments, _ = objective("one")
    expected = Expected(partial(one, attached=True), logits, target, tensors)
    of_gate = torch.empty_like(tensors["ensemble_weights"])
    options = {**tensors, **arguments, "detach_ensemble": False, "backend": "triton", "weights_grad": of_gate}
    expected.check(*ensemble_kd_value_and_grad(logits, target, **options), of_gate)


def test_the_ensembles_cross_entropy_with_its_weight_in_a_tensor():
    logits, target, tensors, arguments, _ = objective("one")
    numbers = arguments | {"temperature": 8.0, "ensemble_ce_weight": 0.75}
    given = numbers | {"ensemble_ce_weight": torch.tensor(0.75)}
    (came, grads), (expected, expected_grads) = (
        ensemble_kd_value_and_grad(logits, target, backend="triton", **tensors, **options)
        for options in (given, numbers)
    )
    assert all(torch.equal(a, b) for a, b in zip((*came, *grads), (*expected, *expected_grads), strict=True))


# -- the plans


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("students", [1, 2, 5, 8, 16, 33, 62])
def test_plans_cover_every_size(students, itemsize):
    regimes = []
    for classes in (1, 2, 3, 10, 100, 128, 129, 1000, 4096, 5000, 32000, 128256, 262144):
        plan = plan_ensemble_kd(students, classes, itemsize)
        regimes.append(plan.regime)
        assert plan.block == power_of_2(plan.block) and plan.rows == power_of_2(plan.rows)
        assert plan.warps == power_of_2(plan.warps) <= 16 and plan.programs_per_sm >= 1
        # A tile gives every thread its elements, and no more than a vector that memory moves at once in a run.
        assert plan.threads * plan.rows == WARP * plan.warps
        assert plan.rows * plan.block % (WARP * plan.warps) == 0
        assert 1 <= plan.run(VECTOR_BYTES // itemsize) <= VECTOR_BYTES // itemsize
        assert plan.regime == "streamed" or (plan.block >= classes and plan.tiles == 1)
        gradients = plan_gradients(students, classes, itemsize)
        assert gradients.rows * gradients.block >= WARP
    assert regimes == sorted(regimes, key=("rows", "resident", "streamed").index)


def test_the_papers_sizes_fall_where_they_should():
    assert plan_ensemble_kd(5, 10, 2).regime == plan_ensemble_kd(5, 100, 4).regime == "rows"
    assert {plan_ensemble_kd(5, c, size).regime for c in (200, 1000, 4096) for size in (2, 4)} == {"resident"}
    assert {plan_ensemble_kd(5, c, size).regime for c in (32000, 128256) for size in (2, 4)} == {"streamed"}


# -- the ops of the differentiable form


def test_the_differentiable_form_is_one_graph(monkeypatch):
    monkeypatch.undo()  # no poison here: the compiler would remember it, and fail in later tests
    # As on CUDA, where the backend is chosen without a look at the kernels, and the ops are the dispatcher's.
    monkeypatch.setattr(loss_functions, "choose_backend", lambda *_: backends.TRITON)
    monkeypatch.setattr(backends.TritonBackend, "ops", lambda *_: torch.ops.oekd_fast)
    logits, target = case()
    weights = torch.tensor([0.2, 0.5, 0.3], requires_grad=True)

    def step(z, w, temperature):
        loss = ensemble_kd_loss(z, target, ensemble_weights=w, detach_ensemble=False, temperature=temperature).loss
        return 1.5 * loss

    def run_step(function, stacked, temperature):
        z = torch.stack(logits).requires_grad_() if stacked else [z.clone().requires_grad_() for z in logits]
        loss = function(z, weights, temperature)
        return loss.detach(), *torch.autograd.grad(loss, [*([z] if stacked else z), weights])

    for given in ((False, 3.0), (True, 3.0), (False, torch.tensor(3.0))):
        torch.compiler.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=False)
        for came, expected in zip(run_step(compiled, *given), run_step(step, *given), strict=True):
            assert torch.equal(came, expected)
    torch.compiler.reset()


@pytest.mark.parametrize("values", [None, torch.tensor([2.5, 0.7, 0.15])], ids=["numbers", "values"])
@pytest.mark.parametrize("weights_grad", [False, True])
def test_ops_keep_to_their_schemas(weights_grad, values):
    logits, target = case()
    kwargs = op_kwargs(
        ensemble_weights=torch.tensor([0.2, 0.5, 0.3]), detach_ensemble=not weights_grad, device_scalars=values
    )
    value = torch.ops.oekd_fast.ensemble_kd_value_and_rows
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(value.default, (logits, target), kwargs, test_utils=checks)
    *_, row_statistics, counted = value(logits, target, **kwargs)
    kwargs |= {
        "row_statistics": row_statistics,
        "counted": counted,
        "grad_scale": torch.tensor(1.0),
        "weights_grad": weights_grad,
        "out": [torch.zeros_like(z) for z in logits],
    }
    torch.library.opcheck(torch.ops.oekd_fast.ensemble_kd_grad_out.default, (logits, target), kwargs, test_utils=checks)
