"""The ensemble distillation loss, every implementation of it, against the fp64 oracle."""

import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.losses import reference
from oekd_fast.losses.calls import KDOptions

from ..conftest import IMPLEMENTATIONS, batch, order_depends_on_layout, rows_of
from ..support import oracle

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 2.5, 0.5, 10.0)
examples = settings(deadline=None, derandomize=True, database=None, max_examples=20)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def minus_infinity_everywhere():
    z, y = batch(classes=21)
    for student in z:
        student[:, 3::4] = -math.inf
    return z, y // 4 * 4, {}


def minus_infinity_in_one():
    z, y = batch(classes=21)
    z[1][:, 2::3] = -math.inf
    return z, y // 3 * 3, {}


def minus_infinity_by_rows():
    z, y = batch(rows=8, classes=40)
    for row in range(8):
        z[row % 5][row, row::7] = -math.inf
        y[row] = (row + 1) % 7  # never one of the row's -inf
    return z, y, {}


def minus_infinity_for_thousands():
    # Longer than any tile of a kernel: parts of the row hold -inf alone.
    z, y = batch(rows=4, classes=5000)
    for student in z:
        student[:, :2500] = -math.inf
    z[2][:, 4000:] = -math.inf
    return z, 2500 + y % 1500, {}


def huge(rows=12, classes=50):
    signs = [torch.randint(0, 2, (rows, classes), generator=generator(j)) * 2.0 - 1 for j in range(5)]
    return [1e4 * s for s in signs], batch(rows=rows, classes=classes)[1], {}


def huge_and_random():
    z, y = batch(rows=16, classes=1500, scale=1e4)
    return [student.clamp(-3e4, 3e4) for student in z], y, {}


def two_hundred_apart():
    z, y = batch(rows=9, classes=11, scale=0.1)
    for j, student in enumerate(z):
        student[:, j] += 200
    return z, y, {}


def identical():
    z, y = batch()
    return [z[0].clone() for _ in z], y, {}


def ties():
    integers = [torch.randint(0, 3, (64, 6), generator=generator(j)).float() for j in range(5)]
    return integers, batch(rows=64, classes=6)[1], {}


def ignoring():
    z, y = batch(rows=20)
    y[::3] = -100
    return z, y, {}


def ignoring_a_class():
    z, y = batch(rows=20)
    return z, y, {"ignore_index": int(y[4])}


def without_target():
    z, _ = batch()
    return z, None, {"ce_weight": 0.0}


def with_options(rows=16, classes=13, students=5, **options):
    return *batch(students=students, rows=rows, classes=classes), options


CASES = {
    "plain": batch,
    "ties": ties,
    "-inf in all students": minus_infinity_everywhere,
    "-inf in one student": minus_infinity_in_one,
    "-inf, another student each row": minus_infinity_by_rows,
    "-inf for thousands of classes": minus_infinity_for_thousands,
    "huge": huge,
    "huge and random": huge_and_random,
    "200 apart": two_hundred_apart,
    "one student": lambda: with_options(students=1),
    "two students": lambda: with_options(students=2),
    "many students": lambda: with_options(students=33),
    "identical students": identical,
    "one row": lambda: with_options(rows=1),
    "one class": lambda: with_options(classes=1),
    "some labels ignored": ignoring,
    "a class ignored": ignoring_a_class,
    "no target": without_target,
    "cross-entropy only": lambda: with_options(kd_weight=0.0),
    "label smoothing": lambda: with_options(label_smoothing=0.1),
    "labels smoothed away": lambda: with_options(label_smoothing=1.0),
    "sum": lambda: with_options(reduction="sum"),
    "weights": lambda: with_options(ensemble_weights=torch.tensor([0.4, 0.1, 0.0, 0.2, 0.3])),
    "weights, one negative": lambda: with_options(ensemble_weights=torch.tensor([1.5, -0.5, 0.25, 0.25, 0.5])),
    "all options": lambda: with_options(
        classes=1030,
        temperature=3.0,
        ce_weight=0.3,
        kd_weight=2.0,
        label_smoothing=0.2,
        ignore_index=4,
        reduction="sum",
        ensemble_weights=torch.tensor([0.4, 0.1, 0.05, 0.2, 0.25]),
    ),
}
CASES |= {f"T = {t}": lambda t=t: with_options(temperature=t) for t in TEMPERATURES}
CASES |= {f"T = {t}, C = 3000": lambda t=t: with_options(rows=3, classes=3000, temperature=t) for t in TEMPERATURES}
SIZES = {2: 32, 10: 32, 100: 16, 1271: 8, 32000: 2, 128256: 2}  # classes: rows


def case(name, dtype=torch.float32):
    """Logits, target and options of a case, or of a number of classes."""
    logits, target, *options = CASES[name]() if name in CASES else batch(rows=SIZES[name], classes=name)
    return [z.to(dtype) for z in logits], target, *(options or ({},))


# Two cases where naive PyTorch is exact by luck and plain PyTorch in another order, the reference, is not.
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
    if name == "one class":  # nothing to learn: the truth is 0
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
    output, grads = value_and_grad(logits, target, **options)
    expected(classes, DTYPES[dtype]).check(output, grads)


def test_one_class_teaches_nothing(value_and_grad):
    logits, _ = batch(classes=1)
    output, grads = value_and_grad(logits, torch.zeros(7, dtype=torch.int64))
    assert output.loss == 0 and not output.kd.any() and not output.ce.any()
    assert output.correct.tolist() == [7] * 6
    assert not any(grad.any() for grad in grads)


def test_identical_students_have_nothing_to_distil(value_and_grad):
    logits, target, _ = identical()
    output, grads = value_and_grad(logits, target)
    truth = oracle.ensemble_kd(logits, target)
    assert oracle.error(output.loss, truth.loss) <= oracle.EPSILON
    assert oracle.error(output.ce, truth.ce) <= oracle.EPSILON
    # KL is a cross-entropy less an entropy: what is left may be no more than their rounding.
    probabilities = F.softmax(logits[0].double() / 2, dim=1)
    entropy = -(probabilities * probabilities.log()).sum(dim=1).mean()
    assert (output.kd >= 0).all() and (output.kd <= 4 * oracle.EPSILON * entropy).all()
    _, grads = value_and_grad(logits, None, ce_weight=0.0)
    terms = 0.15 * 2 * probabilities / len(target)  # the gradient is the difference of two of these, which is 0
    naive = oracle.naive(logits, None, ce_weight=0.0).grads
    for grad, plain in zip(oracle.stack(grads), naive, strict=True):
        assert np.linalg.norm(grad) <= np.linalg.norm(plain) + oracle.EPSILON * terms.norm()


def test_one_student_distils_exactly_nothing(value_and_grad):
    logits, target = batch(students=1)
    output, grads = value_and_grad(logits, target)
    assert output.kd.tolist() == [0.0]
    _, alone = value_and_grad(logits, target, kd_weight=0.0)
    assert oracle.error(oracle.stack(grads), oracle.stack(alone)) <= oracle.EPSILON


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_every_label_ignored(value_and_grad, reduction):
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


def test_a_target_that_cannot_be_costs_infinity_but_has_a_gradient(value_and_grad):
    logits, target = batch(rows=3)
    logits[1][0, target[0]] = -math.inf
    output, grads = value_and_grad(logits, target, kd_weight=0.0)
    truth = oracle.ensemble_kd(logits, target, kd_weight=0.0)
    assert output.ce.tolist()[1] == math.inf and output.loss == math.inf
    assert oracle.error(output.ce[[0, 2, 3, 4]], truth.ce[[0, 2, 3, 4]]) <= oracle.EPSILON
    assert oracle.error(oracle.stack(grads), truth.grads) <= oracle.EPSILON


def test_a_student_without_weight_has_no_say_even_where_it_is_minus_infinity(value_and_grad):
    logits, target = batch(students=3, classes=9)
    logits[1][:, 4:] = -math.inf
    target %= 4
    weights = torch.tensor([0.5, 0.0, 0.5])
    output, grads = value_and_grad(logits, target, ensemble_weights=weights)
    truth = oracle.ensemble_kd(logits, target, ensemble_weights=weights)
    # The ensemble gives something to classes that this student excludes: its divergence, and the loss, are infinite.
    assert output.kd[1] == math.inf == output.loss
    naive = oracle.naive(logits, target, ensemble_weights=weights)  # -1e5 for -inf: the others come out right
    allowed = oracle.error(naive.kd[[0, 2]], truth.kd[[0, 2]]) + oracle.EPSILON
    assert oracle.error(output.kd[[0, 2]], truth.kd[[0, 2]]) <= allowed
    allowed = oracle.error(naive.ensemble_ce, truth.ensemble_ce) + oracle.EPSILON
    assert oracle.error(output.ensemble_ce, truth.ensemble_ce) <= allowed
    allowed = oracle.error(naive.grads, truth.grads) + oracle.EPSILON
    assert oracle.error(oracle.stack(grads), truth.grads) <= allowed


def test_no_weights_are_equal_weights(value_and_grad):
    logits, target = batch(students=4)
    output, grads = value_and_grad(logits, target)
    weighted, weighted_grads = value_and_grad(logits, target, ensemble_weights=torch.full((4,), 0.25))
    assert oracle.error(output.loss, weighted.loss) <= oracle.EPSILON
    assert oracle.error(oracle.stack(grads), oracle.stack(weighted_grads)) <= oracle.EPSILON


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_any_floating_dtype(value_and_grad, dtype):
    logits, target = batch(students=3)
    weights = torch.tensor([0.5, 0.25, 0.25])  # exact in each of them
    expected, expected_grads = value_and_grad(logits, target, ensemble_weights=weights)
    output, grads = value_and_grad(logits, target, ensemble_weights=weights.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip((*output, *grads), (*expected, *expected_grads), strict=True))


# -- what the formula says, in so many words


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


def test_sum_is_mean_times_the_rows_that_count(value_and_grad):
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
    # Small integers: the mean of four is exact, and ties are many.
    rows = rows_of(value_and_grad, 300)
    logits = [torch.randint(0, 4, (rows, classes), generator=generator(j)).float() for j in range(4)]
    scores = torch.stack([*logits, torch.stack(logits).mean(dim=0)])
    target = scores[2].argmax(dim=1)
    target[::2] = scores[4].argmax(dim=1)[::2]
    target[::7] = -100
    output, _ = value_and_grad(logits, target)
    assert output.correct.tolist() == (scores.argmax(dim=2) == target).sum(dim=1).tolist()


def test_ensemble_ties_are_those_of_the_plain_mean(value_and_grad):
    # By the definition zE is the mean: sums that are equal give a tie, however 1/5 rounds.
    rows = rows_of(value_and_grad, 2000)
    logits = [torch.randint(0, 3, (rows, 6), generator=generator(j)).float() for j in range(5)]
    target = torch.stack(logits).sum(dim=0).argmax(dim=1)
    output, _ = value_and_grad(logits, target)
    assert output.correct[-1] == rows


# -- layouts and buffers


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
    logits, target = batch(classes=classes, dtype=DTYPES[dtype])
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
def test_out_is_written_wholly_and_nothing_around_it(value_and_grad, layout, dtype, shape):
    logits, target = batch(rows=shape[0], classes=shape[1], dtype=DTYPES[dtype])
    target[0] = -100  # zeros are written too
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


def test_large_gradients_are_written_wholly_and_nothing_around_them(value_and_grad):
    # 21 MB: beyond the size from which a kernel may write past the caches; rows start anywhere in a line.
    classes = 32001
    rows = rows_of(value_and_grad, 33, classes)
    logits, target = batch(rows=rows, classes=classes)
    area = torch.full((5, rows * (classes + 3) + 64), math.nan)
    out = [part[1:].as_strided((rows, classes), (classes + 3, 1), part[1:].storage_offset()) for part in area]
    output, _ = value_and_grad(logits, target, out=out)
    inside = torch.zeros_like(area, dtype=torch.bool)
    for part in inside:
        part[1:].as_strided((rows, classes), (classes + 3, 1), part[1:].storage_offset()).fill_(True)
    assert area[inside].isfinite().all() and area[~inside].isnan().all()
    _, sliced = value_and_grad([z[-2:] for z in logits], target[-2:])  # small: written as usual
    for buffer, wanted in zip(out, sliced, strict=True):
        assert oracle.error(buffer[-2:] * rows, wanted * 2) <= oracle.EPSILON


def test_out_may_be_the_logits(value_and_grad):
    for classes in (13, 20000):
        logits, target = batch(rows=3, classes=classes)
        _, expected = value_and_grad(logits, target)
        value_and_grad(logits, target, out=logits)
        assert all(torch.equal(z, grad) for z, grad in zip(logits, expected, strict=True))


def test_inputs_are_left_alone(value_and_grad):
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


# -- invariances


@st.composite
def problems(draw):
    return {
        "students": draw(st.integers(1, 6)),
        "rows": draw(st.integers(1, 5)),
        "classes": draw(st.one_of(st.integers(2, 40), st.sampled_from([1023, 1024, 1025, 2100]))),
        "temperature": draw(st.sampled_from(TEMPERATURES)),
        "scale": draw(st.sampled_from([0.1, 3.0, 100.0])),
        "seed": draw(st.integers(0, 1000)),
    }


def build(problem):
    return batch(*(problem[k] for k in ("students", "rows", "classes")), scale=problem["scale"], seed=problem["seed"])


each_implementation = pytest.mark.parametrize("name", IMPLEMENTATIONS)


@each_implementation
@examples
@given(problem=problems(), smoothing=st.sampled_from([0.0, 0.1]))
def test_random_problems(name, problem, smoothing):
    logits, target = build(problem)
    options = {"temperature": problem["temperature"], "label_smoothing": smoothing}
    output, grads = IMPLEMENTATIONS[name](logits, target, **options)
    truth = oracle.ensemble_kd(logits, target, **options)
    naive = [oracle.naive(logits, target, order=order, **options) for order in range(4)]
    # Here a result may be the tiny difference of larger terms, whose rounding counts: 1 is the sum of a softmax.
    rows_of_ones = (0.7 + 0.15 * problem["temperature"]) * len(logits) / len(target) ** 0.5
    terms = {"ce": len(logits), "ensemble_ce": 1.0, "kd": truth.kd_terms + len(logits), "grads": rows_of_ones}
    for field, size in terms.items():
        right = getattr(truth, field)
        came = oracle.stack(grads) if field == "grads" else getattr(output, field).double().numpy()
        allowed = max(np.linalg.norm(getattr(plain, field) - right) for plain in naive)
        assert np.linalg.norm(came - right) <= allowed + oracle.EPSILON * (np.linalg.norm(right) + size), field
    weighted = 0.7 * output.ce.double().sum() + 0.15 * output.kd.double().sum()
    assert oracle.error(output.loss, weighted) <= 2 * oracle.EPSILON
    assert (output.kd >= 0).all() and (output.ce >= 0).all()
    # Gradient rows sum to 0, as probabilities less probabilities do.
    allowed = max(np.abs(plain.grads.sum(axis=2)).max() for plain in naive)
    allowed += 2 * oracle.EPSILON * (0.7 + 0.15 * problem["temperature"]) / len(target)
    assert np.abs(oracle.stack(grads).sum(axis=2)).max() <= allowed


@each_implementation
@examples
@given(problem=problems(), data=st.data())
def test_permuting_students_permutes_what_comes_out(name, problem, data):
    logits, target = build(problem)
    order = data.draw(st.permutations(range(len(logits))))
    weights = torch.arange(1.0, len(logits) + 1) / sum(range(len(logits) + 1))
    output, grads = IMPLEMENTATIONS[name](logits, target, ensemble_weights=weights)
    mixed, mixed_grads = IMPLEMENTATIONS[name](
        [logits[j] for j in order], target, ensemble_weights=weights[list(order)]
    )
    # Cross-entropies do not depend on the other students; the ensemble sums in another order, which rounds.
    assert torch.equal(mixed.ce, output.ce[list(order)])
    assert torch.equal(mixed.correct[:-1], output.correct[list(order)])
    reach = max(z.abs().max().item() for z in logits)  # zE moves by EPSILON * reach, and with it log t
    assert oracle.error(mixed.loss, output.loss) <= oracle.EPSILON * (10 + reach)
    expected = oracle.stack([grads[j] for j in order])
    assert oracle.error(oracle.stack(mixed_grads), expected) <= oracle.EPSILON * (10 + reach)


@each_implementation
@examples
@given(problem=problems(), power=st.integers(-3, 9))
def test_a_constant_added_to_a_row_changes_nothing(name, problem, power):
    # Multiples of 1/8 below 2^12 and a power of two: every sum, and the mean of 2^k students, is exact.
    problem = problem | {"students": 2 ** (problem["students"] % 3)}
    logits, target = build(problem)
    logits = [(z * 8).round() / 8 for z in logits]
    options = {"temperature": problem["temperature"]}
    output, grads = IMPLEMENTATIONS[name](logits, target, **options)
    if name == "reference":  # log_softmax(z / T) divides first: exact only where T is a power of two
        options["temperature"] = 2.0
        output, grads = IMPLEMENTATIONS[name](logits, target, **options)
    moved, moved_grads = IMPLEMENTATIONS[name]([z + 2.0**power for z in logits], target, **options)
    assert all(torch.equal(a, b) for a, b in zip(moved, output, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(moved_grads, grads, strict=True))


# -- the reference alone: everything that only it can do


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_gradcheck_with_the_ensemble_attached(temperature):
    logits, target = batch(students=3, rows=4, classes=5, dtype=torch.float64, scale=1.0)
    target[1] = -100
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    options = KDOptions(temperature=temperature, detach_ensemble=False, label_smoothing=0.1)

    def loss(weights, *logits):
        return reference.ensemble_kd(logits, target, options, weights).loss

    inputs = (weights, *(z.requires_grad_() for z in logits))
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_gradcheck_with_the_ensemble_detached():
    # Finite differences would see the ensemble move: here it is student 1 alone, which is held constant.
    logits, target = batch(students=2, rows=4, classes=5, dtype=torch.float64, scale=1.0)
    weights = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def loss(student):
        return reference.ensemble_kd([student, logits[1]], target, KDOptions(), weights).loss

    assert torch.autograd.gradcheck(loss, (logits[0].requires_grad_(),))
    assert torch.autograd.gradgradcheck(loss, (logits[0],))


def test_detachment_is_what_makes_the_difference():
    logits, target = batch(students=3, dtype=torch.float64)
    leaves = [z.requires_grad_() for z in logits]
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    attached = ensemble_kd_loss(leaves, target, ensemble_weights=weights, detach_ensemble=False)
    detached = ensemble_kd_loss(leaves, target, ensemble_weights=weights)
    assert torch.equal(attached.loss, detached.loss)
    with_ensemble = torch.autograd.grad(attached.loss, [*leaves, weights])
    without = torch.autograd.grad(detached.loss, [*leaves, weights], allow_unused=True)
    assert without[-1] is None and with_ensemble[-1].shape == (3,)
    assert not torch.allclose(with_ensemble[0], without[0])


def test_options_are_frozen_and_have_the_papers_defaults():
    options = KDOptions()
    assert (options.temperature, options.ce_weight, options.kd_weight) == (2.0, 0.7, 0.15)
    with pytest.raises(AttributeError):
        options.temperature = 3.0


def test_oracle_by_hand():
    # One row, two students, two classes, T = 1: everything fits on a line.
    z = [torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[-math.log(3.0), 0.0]])]
    truth = oracle.ensemble_kd(z, torch.tensor([0]), temperature=1.0, ce_weight=1.0, kd_weight=1.0)
    np.testing.assert_allclose(truth.ce, [-math.log(0.75), -math.log(0.25)], rtol=1e-7)
    kl = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    np.testing.assert_allclose(truth.kd, [kl, kl], rtol=1e-6)
    np.testing.assert_allclose(truth.grads[0, 0], [-0.25 + 0.25, 0.25 - 0.25], atol=1e-7)
    np.testing.assert_allclose(truth.grads[1, 0], [-0.75 - 0.25, 0.75 + 0.25], rtol=1e-6)
    assert truth.correct == [1, 0, 1]
