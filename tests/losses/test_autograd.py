"""The differentiable loss on every backend."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import batch, needs_executor, needs_native
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
def test_sixteen_bit_gradients_are_rounded_once_for_any_upstream_gradient(backend, dtype, upstream):
    logits, target = leaves(dtype=DTYPES[dtype])
    ensemble_kd_loss(logits, target, backend=backend).loss.backward(torch.tensor(upstream))
    oracle.Expected(logits, target, upstream=upstream).check_grads([z.grad for z in logits])


def test_a_loss_scale_keeps_gradients_that_fp16_alone_would_lose(backend):
    # With 512 rows of 4000 classes, most gradients are below the smallest float16 number, which a loss scale prevents.
    # The interpreter is slow and gets fewer rows.
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
        z.grad.zero_()  # in place: the graph must not have saved the same memory
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
        (actual,) = torch.autograd.grad(loss, [shared], retain_graph=True)
        truth = oracle.ensemble_kd([shared, other, shared], target)
        assert oracle.error(actual, truth.grads[0] + truth.grads[2]) <= 3 * oracle.EPSILON


def test_no_graph_is_built_if_no_gradient_is_required(backend):
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


def test_only_students_that_require_a_gradient_get_one(backend):
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
    """A shared layer and one head for each student."""

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
    for actual, wanted in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(actual.grad.double(), wanted.grad, rtol=1e-5, atol=1e-6)


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


TWICE = (
    "ensemble_kd_loss: the compiled backends are differentiable once, got create_graph=True; "
    "backend='reference' is differentiable twice"
)


@needs_native
@pytest.mark.parametrize("form", [list, torch.stack])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_native_raises_if_it_is_differentiated_twice(factor, form):
    # A gradient penalty must not silently lose its second-order term.
    logits, target = leaves(students=2)
    loss = factor * ensemble_kd_loss(form(logits), target, backend="native").loss
    with pytest.raises(RuntimeError, match=f"^{re.escape(TWICE)}$"):
        torch.autograd.grad(loss, logits, create_graph=True)


@pytest.mark.parametrize("upstream", [1.0, 2.0])
def test_a_second_backward_without_retain_graph_raises(backend, upstream):
    logits, target = leaves()
    loss = ensemble_kd_loss(logits, target, backend=backend).loss
    loss.backward(torch.tensor(upstream))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward(torch.tensor(upstream))


@needs_native
def test_logits_that_changed_after_the_loss_are_not_used_for_gradients():
    logits, target = batch()
    leaf = logits[0].requires_grad_()
    changed = leaf * 1.0
    loss = ensemble_kd_loss([changed, *logits[1:]], target, backend="native").loss
    with torch.no_grad():
        changed.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward(torch.tensor(2.0))


@needs_native
def test_teachers_are_kept_for_every_backward_pass():
    """The stable ABI takes the tensors out of lists, so the gradients must be computed with lists of their own."""
    logits, target = leaves(students=2)
    teachers = [torch.randn_like(logits[0]) for _ in range(2)]
    given = {"teacher_logits": teachers, "mixing": torch.full((2, 4), 0.25)}
    loss = ensemble_kd_loss(logits, target, **given, backend="native").loss
    expected = torch.autograd.grad(ensemble_kd_loss(logits, target, **given, backend="reference").loss, logits)
    for factor in (1.0, 2.0, 3.0):
        grads = torch.autograd.grad(loss, logits, torch.tensor(factor), retain_graph=True)
        for grad, once in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, factor * once)


@needs_executor
def test_a_list_of_students_needs_no_python_in_the_backward_pass():
    logits, target = leaves()
    loss = ensemble_kd_loss(logits, target, backend="native").loss
    assert "EnsembleKDLoss" in loss.grad_fn.name()
    assert [function for function, _ in loss.grad_fn.next_functions if function] == [
        z.grad_fn or torch.autograd.graph.get_gradient_edge(z).node for z in logits
    ]


def test_reference_can_be_differentiated_twice():
    logits, target = leaves(students=2, rows=3, classes=4, dtype=torch.float64)

    def loss(*z):
        return ensemble_kd_loss(z, target, detach_ensemble=False, backend="reference").loss

    assert torch.autograd.gradgradcheck(loss, logits)


def test_value_and_grad_equals_the_differentiable_loss(backend):
    logits, target = leaves()
    output, grads = ensemble_kd_value_and_grad(logits, target, backend=backend)
    differentiable = ensemble_kd_loss(logits, target, backend=backend)
    differentiable.loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(output, differentiable, strict=True))
    assert all(torch.equal(z.grad, g) for z, g in zip(logits, grads, strict=True))
