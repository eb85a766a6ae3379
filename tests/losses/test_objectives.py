"""Published objectives as arguments of one loss: gates, the ensemble's cross-entropy, external teachers, mixing."""

import math
from functools import cache

import pytest
import torch

from ..support import oracle
from ..support.objective_calls import BACKENDS, IMPLEMENTATIONS, ROWS, at_once, by_autograd, case
from ..support.objectives import OBJECTIVES, Expected

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    return request.param


@cache
def expected(name, dtype, **sizes):
    formula, logits, target, tensors, _ = case(name, dtype, **sizes)
    return Expected(formula, logits, target, tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_is_the_published_formula(implementation, name, dtype):
    _, logits, target, tensors, arguments = case(name, DTYPES[dtype])
    if dtype == "fp64" and implementation != "reference":
        pytest.skip("the native kernel does not support fp64")
    actual = at_once(logits, target, tensors, implementation, **arguments)
    expected(name, DTYPES[dtype]).check(*actual)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_autograd_is_the_published_formula(backend, name, dtype):
    _, logits, target, tensors, arguments = case(name, DTYPES[dtype])
    if dtype == "fp64" and backend == "native":
        pytest.skip("the native kernel does not support fp64")
    expected(name, DTYPES[dtype]).check(*by_autograd(logits, target, tensors, backend, **arguments))


@pytest.mark.parametrize("students, classes", [(5, 1), (1, 40), (2, 2), (5, 1500)])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sizes(implementation, name, students, classes):
    if students == 1 and name in ("mutual", "codistillation"):
        pytest.skip("one student has no others")
    sizes = {"students": students, "classes": classes}
    _, logits, target, tensors, arguments = case(name, **sizes)
    actual = at_once(logits, target, tensors, implementation, **arguments)
    if classes > 1:
        expected(name, torch.float32, **sizes).check(*actual)
    else:  # only the rounding of terms of 1 that cancel remains
        assert abs(actual[0].loss) <= oracle.EPSILON
        assert all(grad.abs().max() <= oracle.EPSILON for grad in actual[1])


@pytest.mark.parametrize("upstream", [1.0, 2.5])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_upstream_gradient_and_grad_scale(backend, name, upstream):
    formula, logits, target, tensors, arguments = case(name)
    right = Expected(formula, logits, target, tensors, upstream=upstream)
    for form, scale in ((by_autograd, {"upstream": upstream}), (at_once, {"grad_scale": torch.tensor(upstream)})):
        output, grads, weights_grad = form(logits, target, tensors, backend, **scale, **arguments)
        right.check(output, grads, weights_grad)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sum_is_mean_times_the_number_of_counted_rows(backend, name):
    _, logits, target, tensors, arguments = case(name)
    mean, total = (
        at_once(logits, target, tensors, backend, reduction=reduction, **arguments) for reduction in ("mean", "sum")
    )
    assert oracle.error(total[0].loss, (ROWS - 1) * mean[0].loss.double()) <= 3 * oracle.EPSILON
    assert oracle.error(oracle.stack(total[1]), (ROWS - 1) * oracle.stack(mean[1])) <= 3 * oracle.EPSILON
    if total[2] is not None:
        assert oracle.error(total[2], (ROWS - 1) * mean[2].double()) <= 3 * oracle.EPSILON


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rows", [0, ROWS])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_statistics_and_gradients_are_zero_if_no_row_counts(backend, name, rows, reduction):
    _, logits, _, tensors, arguments = case(name, rows=max(rows, 1))
    logits = [z[:rows] for z in logits]
    for per_row in ("teacher_logits", "ensemble_weights"):
        if per_row in tensors and tensors[per_row].dim() > 1:
            tensors[per_row] = tensors[per_row][..., :rows, :]
    target = torch.full((rows,), -100)
    for form in (at_once, by_autograd):
        output, grads, weights_grad = form(logits, target, tensors, backend, reduction=reduction, **arguments)
        assert not any(statistic.any() for statistic in output) and not any(grad.any() for grad in grads)
        assert weights_grad is None or not weights_grad.any()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_ignored_row_may_hold_anything(backend, name, garbage):
    _, logits, target, tensors, arguments = case(name)
    expected = at_once(logits, target, tensors, backend, **arguments)
    ignored = ROWS // 2
    for z in logits:
        z[ignored] = garbage
    for per_row in ("teacher_logits", "ensemble_weights"):
        if per_row in tensors and tensors[per_row].dim() > 1:
            tensors[per_row][..., ignored, :] = garbage
    actual = at_once(logits, target, tensors, backend, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(actual[0], expected[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(actual[1], expected[1], strict=True))
    assert actual[2] is None or torch.equal(actual[2], expected[2])
    assert not any(grad[ignored].any() for grad in actual[1])


@pytest.mark.parametrize("scale", [1e4, 2e2])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_huge_logits(backend, name, scale):
    formula, logits, target, tensors, arguments = case(name)
    logits = [(z * scale / 3).clamp(-3e4, 3e4) for z in logits]
    if "teacher_logits" in tensors:
        tensors["teacher_logits"] *= scale / 3
    Expected(formula, logits, target, tensors).check(*at_once(logits, target, tensors, backend, **arguments))


NOT_SMOOTHED = [name for name, objective in OBJECTIVES.items() if "label_smoothing" not in objective.arguments]


@pytest.mark.parametrize("name", NOT_SMOOTHED)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_minus_infinity_for_a_thousand_classes(implementation, name):
    # The row is longer than any tile of a kernel, and some tiles hold only -inf.
    formula, logits, target, tensors, arguments = case(name, rows=3, classes=1500)
    for key in ("mixing", "ensemble_weights"):
        if key in tensors:
            tensors[key] = tensors[key].abs()  # a negative weight times -inf excludes nothing
    for scores in (*logits, *(tensors[key] for key in tensors if key == "teacher_logits")):
        scores[..., :1100] = -math.inf
    target = torch.where(target >= 0, 1100 + target % 400, target)
    actual = at_once(logits, target, tensors, implementation, **arguments)
    Expected(formula, logits, target, tensors).check(*actual)


@pytest.mark.parametrize("name", NOT_SMOOTHED)
def test_classes_that_all_students_exclude(backend, name):
    formula, logits, target, tensors, arguments = case(name)
    if "mixing" in tensors:
        tensors["mixing"] = tensors["mixing"].abs()  # a negative weight times -inf excludes nothing
    if "ensemble_weights" in tensors:
        tensors["ensemble_weights"] = tensors["ensemble_weights"].abs()
    for scores in (*logits, *(tensors[key] for key in tensors if key == "teacher_logits")):
        scores[..., 1::3] = -math.inf
    target = torch.where(target >= 0, target // 3 * 3, target)
    actual = at_once(logits, target, tensors, backend, **arguments)
    Expected(formula, logits, target, tensors).check(*actual)
