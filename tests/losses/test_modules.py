"""The differentiable form: autograd around the loss, on every backend; the module."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oekd_fast import EnsembleKDLoss, ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.losses.calls import KDOptions

from ..conftest import batch, needs_native
from ..support import oracle

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def leaves(**options):
    logits, target = batch(**options)
    return [z.requires_grad_() for z in logits], target


@pytest.mark.parametrize("upstream", [None, 1.0, 2.5, -0.3718, 0.0])
def test_upstream_gradient(backend, upstream):
    logits, target = leaves()
    loss = ensemble_kd_loss(logits, target, backend=backend).loss
    loss.backward(None if upstream is None else torch.tensor(upstream))
    scale = 1.0 if upstream is None else upstream
    if scale == 0:
        assert all((z.grad == 0).all() for z in logits)
        return
    oracle.Expected(logits, target, upstream=scale).check_grads([z.grad for z in logits])


@pytest.mark.parametrize("upstream", [1.0, 0.25, 64.0, 2.71875])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_sixteen_bit_gradients_are_rounded_once_whatever_comes_from_above(backend, dtype, upstream):
    logits, target = leaves(dtype=DTYPES[dtype])
    ensemble_kd_loss(logits, target, backend=backend).loss.backward(torch.tensor(upstream))
    oracle.Expected(logits, target, upstream=upstream).check_grads([z.grad for z in logits])


def test_a_loss_scale_keeps_gradients_that_fp16_alone_would_lose(backend):
    # 512 rows of 4000 classes: most gradients lie below the smallest fp16 number; that is what loss scales are for.
    # In the interpreter, which is slow, fewer rows.
    rows, classes = (32, 4000) if backend == "triton" else (512, 4000)
    logits, target = leaves(students=2, rows=rows, classes=classes, dtype=torch.float16, scale=1.0)
    ensemble_kd_loss(logits, target, backend=backend).loss.backward(torch.tensor(2.0**16))
    truth = oracle.ensemble_kd(logits, target, upstream=2.0**16)
    lost = [(z.grad == 0).double().mean().item() for z in logits]
    half = oracle.half_ulp(truth.grads, torch.float16)
    assert max(lost) <= (abs(truth.grads) <= half).mean() + 0.01


def test_backward_three_times_accumulates(backend):
    logits, target = leaves()
    loss = ensemble_kd_loss(logits, target, backend=backend).loss
    loss.backward(retain_graph=True)
    once = [z.grad.clone() for z in logits]
    for _ in range(3):
        loss.backward(retain_graph=True)
    assert all(torch.equal(z.grad, 4 * g) for z, g in zip(logits, once, strict=True))
    for z in logits:
        z.grad.zero_()  # in place: what the graph has saved must not be the same memory
    loss.backward()
    assert all(torch.equal(z.grad, g) for z, g in zip(logits, once, strict=True))


def test_gradients_share_no_memory(backend):
    logits, target = leaves()
    loss = ensemble_kd_loss(logits, target, backend=backend).loss
    loss.backward(retain_graph=True)
    before = [z.grad.clone() for z in logits]
    for j, z in enumerate(logits):
        z.grad.fill_(math.nan)
        assert all(torch.equal(other.grad, b) for other, b in zip(logits[j + 1 :], before[j + 1 :], strict=True))
    again = torch.autograd.grad(loss, logits)
    assert all(torch.equal(a, b) for a, b in zip(again, before, strict=True))


def test_one_tensor_as_two_students(backend):
    (shared, other), target = leaves(students=2)
    loss = ensemble_kd_loss([shared, other, shared], target, backend=backend).loss
    for _ in range(2):
        (came,) = torch.autograd.grad(loss, [shared], retain_graph=True)
        truth = oracle.ensemble_kd([shared, other, shared], target)
        assert oracle.error(came, truth.grads[0] + truth.grads[2]) <= 3 * oracle.EPSILON


def test_no_gradient_asked_no_graph(backend):
    logits, target = batch()
    weights = torch.full((5,), 0.2, requires_grad=True)
    for given in (None, weights):
        output = ensemble_kd_loss(logits, target, ensemble_weights=given, backend=backend)
        assert not any(statistic.requires_grad for statistic in output)
    with torch.no_grad():
        output = ensemble_kd_loss([z.requires_grad_() for z in logits], target, backend=backend)
    assert not output.loss.requires_grad


def test_only_the_loss_is_differentiable(backend):
    logits, target = leaves()
    loss, *statistics = ensemble_kd_loss(logits, target, backend=backend)
    assert loss.requires_grad and not any(statistic.requires_grad for statistic in statistics)
    assert loss.dtype == torch.float32 and statistics[-1].dtype == torch.int64


def test_some_students_alone_require_a_gradient(backend):
    logits, target = batch()
    logits[1].requires_grad_()
    logits[3].requires_grad_()
    ensemble_kd_loss(logits, target, backend=backend).loss.backward()
    truth = oracle.ensemble_kd(logits, target)
    assert [z.grad is not None for z in logits] == [False, True, False, True, False]
    for j in (1, 3):
        assert oracle.error(logits[j].grad, truth.grads[j]) <= 2 * oracle.EPSILON


def test_weights_get_a_gradient_only_through_an_attached_ensemble(backend):
    logits, target = leaves(students=3)
    weights = torch.tensor([0.5, 0.2, 0.3], requires_grad=True)
    ensemble_kd_loss(logits, target, ensemble_weights=weights, backend=backend).loss.backward()
    assert weights.grad is None
    ensemble_kd_loss(logits, target, ensemble_weights=weights, detach_ensemble=False).loss.backward()
    assert weights.grad.any()


def test_stacked_gradient(backend):
    logits, target = batch()
    stacked = torch.stack(logits, dim=2).permute(2, 0, 1).requires_grad_()  # [S, B, C], the students innermost
    ensemble_kd_loss(stacked, target, backend=backend).loss.backward(torch.tensor(2.5))
    oracle.Expected(logits, target, upstream=2.5).check_grads(list(stacked.grad.unbind(0)))


@pytest.mark.parametrize("rows", [0, 4])
def test_nothing_counted_gives_zero_gradients(backend, rows):
    logits, _ = leaves(rows=rows)
    ensemble_kd_loss(logits, torch.full((rows,), -100), backend=backend).loss.backward(torch.tensor(3.0))
    assert all(z.grad.shape == z.shape and (z.grad == 0).all() for z in logits)


class Heads(nn.Module):
    """A shared layer and one head a student: the smallest thing shaped like an ensemble."""

    def __init__(self, students=3):
        super().__init__()
        self.base = nn.Linear(6, 8)
        self.heads = nn.ModuleList(nn.Linear(8, 10) for _ in range(students))

    def forward(self, x):
        x = F.relu(self.base(x))
        return [head(x) for head in self.heads]


def heads(seed=0):
    torch.manual_seed(seed)
    return Heads(), torch.randn(12, 6), torch.randint(10, (12,))


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_inside_a_larger_graph(backend, weight):
    model, x, y = heads()
    penalty = 0.01 * sum(p.square().sum() for p in model.parameters())
    (weight * ensemble_kd_loss(model(x), y, backend=backend).loss + penalty).backward()
    exact, _, _ = heads()
    exact.double()
    penalty = 0.01 * sum(p.square().sum() for p in exact.parameters())
    (weight * ensemble_kd_loss(exact(x.double()), y, backend="reference").loss + penalty).backward()
    for came, wanted in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(came.grad.double(), wanted.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_the_loss_of_the_rounded_logits(backend, dtype):
    model, x, y = heads()
    with torch.autocast("cpu", dtype):
        logits = model(x)
        output = ensemble_kd_loss(logits, y, backend=backend)
    assert logits[0].dtype == dtype and output.loss.dtype == torch.float32
    oracle.check(output, torch.autograd.grad(output.loss, logits, retain_graph=True), logits, y)
    output.loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@needs_native
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_native_refuses_to_be_differentiated_twice(factor):
    # A gradient penalty must not lose its second-order term in silence.
    logits, target = leaves(students=2)
    loss = factor * ensemble_kd_loss(logits, target, backend="native").loss
    with pytest.raises(RuntimeError, match="(?i)twice|once|double backward|reference"):
        grads = torch.autograd.grad(loss, logits, create_graph=True)
        (loss + sum(g.square().sum() for g in grads)).backward()


def test_reference_can_be_differentiated_twice():
    logits, target = leaves(students=2, rows=3, classes=4, dtype=torch.float64)

    def loss(*z):
        return ensemble_kd_loss(z, target, detach_ensemble=False, backend="reference").loss

    assert torch.autograd.gradgradcheck(loss, logits)


def test_value_and_grad_is_the_differentiable_form_in_one(backend):
    logits, target = leaves()
    output, grads = ensemble_kd_value_and_grad(logits, target, backend=backend)
    differentiable = ensemble_kd_loss(logits, target, backend=backend)
    differentiable.loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(output, differentiable, strict=True))
    assert all(torch.equal(z.grad, g) for z, g in zip(logits, grads, strict=True))


def test_auto_takes_the_reference_for_what_a_kernel_does_not_cover():
    logits, target = leaves(dtype=torch.float64)
    assert ensemble_kd_loss(logits, target).loss.dtype == torch.float64
    logits, target = leaves()
    attached = {"detach_ensemble": False}
    auto = ensemble_kd_loss(logits, target, **attached).loss
    assert torch.equal(auto, ensemble_kd_loss(logits, target, backend="reference", **attached).loss)


# -- the module


def test_module_is_the_function_with_its_options_fixed(backend):
    options = {"temperature": 3.0, "ce_weight": 0.5, "label_smoothing": 0.1, "reduction": "sum", "ignore_index": 2}
    module = EnsembleKDLoss(backend=backend, **options)
    logits, target = leaves()
    loss = module(logits, target)
    assert torch.equal(loss, ensemble_kd_loss(logits, target, backend=backend, **options).loss)
    loss.backward()
    assert all(z.grad.any() for z in logits)
    assert torch.equal(module(torch.stack(logits), target), loss)


def test_module_shows_its_options_and_has_nothing_to_train():
    module = EnsembleKDLoss(temperature=4.0)
    assert module.options == KDOptions(temperature=4.0)
    assert "temperature=4.0" in repr(module) and "kd_weight=0.15" in repr(module)
    assert not list(module.parameters()) and not module.state_dict()


def test_module_checks_its_options_at_once():
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0, got 0"):
        EnsembleKDLoss(temperature=0.0)
    with pytest.raises(TypeError, match="temprature"):
        EnsembleKDLoss(temprature=2.0)
