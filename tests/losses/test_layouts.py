"""Strides, stacked logits, buffers for the gradients, the loss scale and grad modes."""

import math

import pytest
import torch

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import batch, fewer_of, order_depends_on_layout
from ..support import oracle
from ..support.kd_cases import DTYPES

pytestmark = pytest.mark.usefixtures("one_thread")


def transposed(z):
    return z.t().contiguous().t()


def padded_rows(z):
    wide = z.new_full((z.shape[0], z.shape[1] + 5), math.nan)
    wide[:, 2 : 2 + z.shape[1]] = z
    return wide[:, 2 : 2 + z.shape[1]]


def every_second(z):
    wide = z.new_full((2 * z.shape[0], 2 * z.shape[1]), math.nan)
    wide[1::2, ::2] = z
    return wide[1::2, ::2]


def offset(z):
    flat = z.new_full((z.numel() + 3,), math.nan)
    flat[3:] = z.flatten()
    return flat[3:].view(z.shape)


LAYOUTS = {"transposed": transposed, "padded rows": padded_rows, "every second": every_second, "offset": offset}


@pytest.mark.parametrize("classes", [13, 2500])
@pytest.mark.parametrize("layout", [*LAYOUTS, "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_change_nothing(compiled_value_and_grad, layout, dtype, classes):
    logits, target = batch(rows=3, classes=classes, dtype=DTYPES[dtype])
    expected, expected_grads = compiled_value_and_grad(logits, target)
    kinds = [*LAYOUTS.values(), lambda z: z] if layout == "mixed" else [LAYOUTS[layout]] * 5
    laid_out = [kind(z) for kind, z in zip(kinds, logits, strict=True)]
    output, grads = compiled_value_and_grad(laid_out, torch.stack([target, target], dim=1)[:, 0])
    if order_depends_on_layout(compiled_value_and_grad):
        oracle.check(output, grads, logits, target)
        return
    assert all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


@pytest.mark.parametrize("layout", [*LAYOUTS, "mixed"])
def test_strides_on_every_implementation(value_and_grad, layout):
    logits, target = batch()
    kinds = [*LAYOUTS.values(), lambda z: z] if layout == "mixed" else [LAYOUTS[layout]] * 5
    laid_out = [kind(z) for kind, z in zip(kinds, logits, strict=True)]
    output, grads = value_and_grad(laid_out, target)
    oracle.check(output, grads, logits, target)


@pytest.mark.parametrize("dim", [0, 1])
def test_expanded_logits(value_and_grad, dim):
    small, target = batch(rows=1 if dim == 0 else 7, classes=13 if dim == 0 else 1)
    logits = [z.expand(7, 13) for z in small]
    target = torch.arange(7)
    output, grads = value_and_grad(logits, target)
    oracle.check(output, grads, logits, target)


@pytest.mark.parametrize("permutation", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_stacked_logits(backend, permutation):
    logits, target = batch()
    stacked = torch.stack(logits)
    stacked = stacked.permute(permutation).contiguous().permute(torch.tensor(permutation).argsort().tolist())
    output, grads = ensemble_kd_value_and_grad(stacked, target, backend=backend)
    assert len(grads) == 5
    oracle.check(output, grads, logits, target)
    out = torch.full_like(stacked, math.nan)
    again, written = ensemble_kd_value_and_grad(stacked, target, backend=backend, out=out)
    assert torch.equal(out, torch.stack(grads)) and torch.equal(again.loss, output.loss)


@pytest.mark.parametrize("shape", [(7, 13), (3, 2500), (5, 16), (1, 1024), (2, 1025)])
@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_out_is_fully_written_and_nothing_around_it(value_and_grad, layout, dtype, shape):
    logits, target = batch(students=2, rows=shape[0], classes=shape[1], dtype=DTYPES[dtype])
    target[0] = -100  # zeros must be written too
    _, expected = value_and_grad(logits, target)
    guard = 64
    out, whole = [], []
    for z in logits:
        rows, classes = z.shape
        area = z.new_full((2 * rows + 2, 2 * classes + 2 * guard), math.nan)
        whole.append(area)
        if layout == "transposed":
            out.append(area.view(-1)[guard : guard + z.numel()].view(classes, rows).t())
        elif layout == "every second":
            out.append(area[1 : 1 + 2 * rows : 2, guard : guard + 2 * classes : 2])
        elif layout == "padded rows":
            out.append(area[1 : 1 + rows, guard + 1 : guard + 1 + classes])
        else:
            start = guard + (layout == "offset")
            out.append(area.view(-1)[start : start + z.numel()].view(rows, classes))
    _, grads = value_and_grad(logits, target, out=out)
    if order_depends_on_layout(value_and_grad):
        oracle.Expected(logits, target).check_grads(grads)
        expected = grads
    for grad, buffer, area, wanted in zip(grads, out, whole, expected, strict=True):
        assert grad is buffer
        assert torch.equal(buffer, wanted)
        assert area.numel() - area.isnan().sum() == wanted.numel()


def test_large_gradients_are_fully_written_and_nothing_around_them(value_and_grad):
    # At 21 MB a kernel may write around the caches. Rows start anywhere in a cache line.
    classes = 32001
    logits, target = fewer_of(value_and_grad, *batch(rows=33, classes=classes))
    rows = len(target)
    area = torch.full((len(logits), rows * (classes + 3) + 64), math.nan)
    out = [part[1:].as_strided((rows, classes), (classes + 3, 1), part[1:].storage_offset()) for part in area]
    output, _ = value_and_grad(logits, target, out=out)
    inside = torch.zeros_like(area, dtype=torch.bool)
    for part in inside:
        part[1:].as_strided((rows, classes), (classes + 3, 1), part[1:].storage_offset()).fill_(True)
    assert area[inside].isfinite().all() and area[~inside].isnan().all()
    _, sliced = value_and_grad([z[-2:] for z in logits], target[-2:])  # small gradients are written through the caches
    for buffer, wanted in zip(out, sliced, strict=True):
        assert oracle.error(buffer[-2:] * rows, wanted * len(wanted)) <= oracle.EPSILON


def test_out_may_be_the_logits(value_and_grad):
    for classes in (13, 20000):
        logits, target = batch(rows=3, classes=classes)
        logits, target = fewer_of(value_and_grad, logits, target)
        _, expected = value_and_grad(logits, target)
        value_and_grad(logits, target, out=logits)
        assert all(torch.equal(z, grad) for z, grad in zip(logits, expected, strict=True))


def test_inputs_are_not_modified(value_and_grad):
    logits, target = batch()
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0])
    before = [t.clone() for t in (*logits, target, weights)]
    value_and_grad(logits, target, ensemble_weights=weights)
    assert all(torch.equal(a, b) for a, b in zip(before, (*logits, target, weights), strict=True))


@pytest.mark.parametrize("scale", [torch.tensor(1024.0), torch.tensor([1024.0]), torch.tensor(1024.0).double()])
@pytest.mark.parametrize("dtype", DTYPES)
def test_grad_scale_multiplies_the_gradients_not_the_loss(value_and_grad, scale, dtype):
    logits, target = batch(dtype=DTYPES[dtype])
    output, grads = value_and_grad(logits, target, grad_scale=scale)
    oracle.check(output, None, logits, target)
    truth = oracle.ensemble_kd(logits, target, upstream=1024.0)
    naive = oracle.naive(logits, target, upstream=1024.0)
    allowed = oracle.error(naive.grads, truth.grads) + oracle.EPSILON
    assert oracle.beyond_rounding(oracle.stack(grads), truth.grads, DTYPES[dtype]) <= allowed


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_value_and_grad_in_every_grad_mode(backend, grad_mode):
    with grad_mode():
        logits, target = batch()
        output, grads = ensemble_kd_value_and_grad(logits, target, backend=backend)
        value = ensemble_kd_loss(logits, target, backend=backend)
    assert torch.equal(value.loss, output.loss)
    oracle.check(output, grads, [z.clone() for z in logits], target)


def test_value_and_grad_is_outside_autograd(backend):
    logits, target = batch(students=3)
    logits = [z.requires_grad_() for z in logits]
    weights = torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    for more in ({"ensemble_weights": weights}, {"grad_scale": scale}):
        output, grads = ensemble_kd_value_and_grad(logits, target, backend=backend, **more)
        assert not any(t.requires_grad for t in (*output, *grads))
