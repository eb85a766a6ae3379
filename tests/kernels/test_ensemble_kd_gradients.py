"""Gradients of the Triton kernels from saved row statistics, and the ops of the differentiable loss."""

import pytest
import torch

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.losses import backends
from oekd_fast.losses import ensemble_kd as loss_functions

from ..conftest import INTERPRETED, op_kwargs
from ..support import oracle

pytest.importorskip("triton", reason="Triton is not installed")

from ..support.ensemble_kd_launches import GRADIENT_PLANS, PLANS, UNREAD, case, problem, run, run_gradients

pytestmark = pytest.mark.skipif(
    not INTERPRETED, reason="tests/losses/test_ensemble_kd_gpu.py tests the kernels on a GPU"
)


# Each plan of the loss with each plan of the gradients; each of them with the ensemble detached and attached.
@pytest.mark.parametrize(
    "name, plan, detach",
    [(name, plan, (i + k) % 2 == 0) for i, name in enumerate(PLANS) for k, plan in enumerate(GRADIENT_PLANS)],
)
def test_gradients_from_row_statistics(name, plan, detach):
    logits, target = case()
    given = problem(logits, target, detach_ensemble=detach, temperature=3.0)
    result, at_once = run(given, PLANS[name], grad_scale=torch.tensor(2.5), keep_rows=True)
    grads, _ = run_gradients(given, result, GRADIENT_PLANS[plan], upstream=2.5)
    assert oracle.error(oracle.stack(grads), oracle.stack(at_once)) <= oracle.EPSILON
    if detach:
        oracle.Expected(logits, target, upstream=2.5, temperature=3.0, orders=4).check_grads(grads)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_through_the_ensemble(dtype, weighted):
    # The truth is the reference in fp64, which gradcheck confirms; the allowed error is that of the reference in the
    # dtype of the logits.
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
    # The form without autograd has the same accuracy.
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


@pytest.mark.parametrize("plan", GRADIENT_PLANS)
@pytest.mark.parametrize("detach", [True, False])
def test_gradients_from_row_statistics_read_device_scalars(detach, plan):
    logits, target = case()
    numbers = {"temperature": 8.0, "ce_weight": 0.25, "kd_weight": 2.25}  # exact in fp32, as is a division by 8
    given = problem(
        logits, target, detach_ensemble=detach, device_scalars=torch.tensor(list(numbers.values())), **UNREAD
    )
    known = problem(logits, target, detach_ensemble=detach, **numbers)
    came, expected = (
        run_gradients(
            p,
            run(p, PLANS["one row"], with_grads=False, keep_rows=True)[0],
            GRADIENT_PLANS[plan],
            1.5,
            of_weights=not detach,
        )
        for p in (given, known)
    )
    assert all(torch.equal(a, b) for a, b in zip(came[0], expected[0], strict=True))
    assert detach or torch.equal(came[1], expected[1])


def test_the_differentiable_form_is_one_graph(monkeypatch):
    monkeypatch.undo()  # uninitialised memory is not filled here, since the compiler would keep the replaced functions
    # On CUDA, too, the backend is chosen without loading the kernels, and the dispatcher calls the ops.
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
