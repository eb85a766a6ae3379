"""Labels, class weights, divisors, divergences and strides in the Triton kernels, in every plan that supports them."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from oekd_fast import EnsembleKDOutput

from ..conftest import INTERPRETED
from ..support import oracle
from ..support.plain_loss import Expected

pytest.importorskip("triton", reason="Triton is not installed")

from oekd_fast.kernels.ensemble_kd import launch as ensemble_kd
from oekd_fast.kernels.ensemble_kd import problem as problems

from ..support.ensemble_kd_launches import ADJACENT, CLASSES, GRADIENT_PLANS, PLANS, problem

pytestmark = pytest.mark.skipif(
    not INTERPRETED, reason="tests/losses/test_ensemble_kd_gpu_labels.py tests the kernels on a GPU"
)
ALL = PLANS | ADJACENT
EACH_KERNEL = ["rows", "wide", "chunks", "adjacent"]
OUTER, INNER = 2, 3
ROWS = OUTER * INNER


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


def images(students=3, dtype=torch.float32):
    """Logits [O, C, I], in which rows are neighbours in memory."""
    return [(3 * torch.randn(OUTER, CLASSES, INNER, generator=generator(j))).to(dtype) for j in range(students)]


def indices(dtype=torch.int64):
    target = torch.randint(CLASSES, (OUTER, INNER), generator=generator(50)).to(dtype)
    target[:, 1] = -100
    return target


def soft_labels():
    return F.softmax(2 * torch.randn(OUTER, CLASSES, INNER, generator=generator(51)), dim=1)


def class_weights():
    weights = torch.rand(CLASSES, generator=generator(52))
    weights[3] = 0.0
    return weights


def upstream_of(options):
    return torch.rand(ROWS, generator=generator(53)) + 0.5 if options.get("per_row") else torch.tensor(2.5)


# Options by their names in Problem.
LABELS = {
    "class weights": (indices, {"class_weights": class_weights()}),
    "losses of rows": (
        indices,
        {"class_weights": class_weights(), "label_smoothing": 0.2, "mean": False, "per_row": True, "temperature": 2.5},
    ),
    "int8 labels over a number of items": (
        lambda: indices(torch.int8),
        {"num_items": torch.tensor(13), "class_weights": class_weights(), "label_smoothing": 0.2},
    ),
}
SOFT = {
    "soft labels": (soft_labels, {}),
    "weights, smoothed, and the ensemble's cross-entropy": (
        soft_labels,
        {"class_weights": class_weights(), "label_smoothing": 0.2, "ensemble_ce_weight": 0.5, "temperature": 2.5},
    ),
    "losses of rows": (soft_labels, {"mean": False, "per_row": True, "num_items": None}),
}
DIVERGENCES = {
    "reverse": (indices, {"divergence": 1, "temperature": 2.5}),
    "js": (indices, {"divergence": 2, "beta": 0.3}),
    "reverse from a teacher": (soft_labels, {"divergence": 1, "teacher_logits": images(4)[3], "kd_weight": 2.0}),
    "js from a teacher, of rows": (
        indices,
        {"divergence": 2, "teacher_logits": images(4)[3], "mean": False, "per_row": True, "temperature": 1.0},
    ),
}
STANDARDISED = {
    "forward": (indices, {"kd_weight": 9.0}),
    "forward from a teacher, of rows": (
        soft_labels,
        {"teacher_logits": images(4)[3], "mean": False, "per_row": True, "temperature": 2.5, "kd_weight": 9.0},
    ),
    "reverse": (indices, {"divergence": 1, "kd_weight": 9.0, "ensemble_ce_weight": 0.5}),
    "js from a teacher": (indices, {"divergence": 2, "beta": 0.3, "kd_weight": 9.0, "teacher_logits": images(4)[3]}),
}


def plain(options):
    """The same options for the plain loss."""
    options = dict(options)
    mean, per_row = options.pop("mean", True), options.pop("per_row", False)
    options["reduction"] = "none" if per_row else "mean" if mean else "sum"
    options["divergence_kind"] = ("forward", "reverse", "js")[options.pop("divergence", 0)]
    options["weight"] = options.pop("class_weights", None)
    if options.get("num_items") is not None:
        options["num_items"] = int(options["num_items"])
    return options


def launch(logits, target, options, plan, grad_scale=None):
    """Statistics and gradients of one launch."""
    options = dict(options)
    teacher = options.pop("teacher_logits", None)
    given = replace(problem(logits, target, **options), teacher_logits=None if teacher is None else (teacher,))
    grads = [torch.empty_like(z) for z in logits]
    result, made = ensemble_kd.loss_launch(given, grads, grad_scale, plan)
    made.run(given.device)
    return EnsembleKDOutput(*result.statistics), grads


def expected(logits, target, options, upstream):
    return Expected(logits, target, upstream=upstream, **plain(options))


def check(logits, target, options, plan):
    upstream = upstream_of(options)
    expected(logits, target, options, upstream).check(*launch(logits, target, options, plan, upstream))


@pytest.mark.parametrize("plan", EACH_KERNEL)
@pytest.mark.parametrize("name", LABELS)
def test_indices(name, plan):
    target, options = LABELS[name]
    check(images(), target(), options, ALL[plan])


@pytest.mark.parametrize("plan", ["wide", "adjacent"])
@pytest.mark.parametrize("name", SOFT)
def test_probabilities(name, plan):
    target, options = SOFT[name]
    check(images(), target(), options, ALL[plan])


@pytest.mark.parametrize("plan", ["rows", "adjacent"])
@pytest.mark.parametrize("name", STANDARDISED)
def test_standardised_logits(name, plan):
    target, options = STANDARDISED[name]
    check(images(), target(), {**options, "standardise_logits": True}, ALL[plan])


@pytest.mark.parametrize("plan", ["rows", "adjacent"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences(name, plan):
    target, options = DIVERGENCES[name]
    check(images(), target(), options, ALL[plan])


@pytest.mark.parametrize(
    "name, plan, of_gradients",
    list(zip(LABELS, ("rows", "chunks", "adjacent"), ("chunks", "rows", "chunks"), strict=True)),
)
def test_gradients_from_row_statistics(name, plan, of_gradients):
    target, options = LABELS[name]
    logits, target = images(), target()
    upstream = upstream_of(options)
    given = problem(logits, target, **options)
    result, made = ensemble_kd.loss_launch(given, plan=ALL[plan], keep_rows=True)
    made.run(given.device)
    grads = [torch.empty_like(z) for z in logits]
    arguments = (given, grads, upstream, result.row_statistics, result.counted, None, GRADIENT_PLANS[of_gradients])
    ensemble_kd.gradients_launch(*arguments).run(given.device)
    expected(logits, target, options, upstream).check(EnsembleKDOutput(*result.statistics), grads)


@pytest.mark.parametrize("options", [{}, {"class_weights": class_weights(), "label_smoothing": 0.2}], ids=["", "all"])
@pytest.mark.parametrize("plan", ["one row", "adjacent"])
def test_one_hot_probabilities_give_the_bits_of_indices(plan, options):
    logits, target = images(), indices().clamp(min=0)
    logits[1][:, 5] = -math.inf
    target[target == 5] = 6
    options = options | {"mean": False, "ensemble_ce_weight": 0.5}  # the mean over weighted indices divides by weights
    one_hot = F.one_hot(target, CLASSES).movedim(-1, 1).bfloat16()
    (soft, soft_grads), (hard, hard_grads) = (launch(logits, y, options, ALL[plan]) for y in (one_hot, target))
    for came, right in zip((*soft, *soft_grads), (*hard, *hard_grads), strict=True):
        assert torch.equal(came, right)


@pytest.mark.parametrize("plan", ["one row", "chunks"])
def test_terms_of_weight_zero_are_zero_even_where_a_class_is_excluded(plan):
    logits = images()
    for z in logits:
        z[:, 3] = -math.inf  # class 3 has weight 0
    target = torch.full((OUTER, INNER), 4)
    target[0, 0] = 3
    check(logits, target, {"class_weights": class_weights(), "label_smoothing": 0.2}, ALL[plan])


def test_excluded_classes_of_probability_zero():
    logits, target = images(), soft_labels()
    for z in logits:
        z[:, 20:] = -math.inf
    target[:, 20:] = 0.0
    output, grads = launch(logits, target / target.sum(dim=1, keepdim=True), {"divergence": 2}, ALL["rows"])
    inside = target[:, :20] / target[:, :20].sum(dim=1, keepdim=True)
    right, right_grads = launch([z[:, :20] for z in logits], inside, {"divergence": 2}, ALL["rows"])
    assert torch.allclose(output.loss, right.loss, rtol=1e-6)
    assert all(torch.allclose(a[:, :20], b, rtol=1e-5, atol=1e-8) for a, b in zip(grads, right_grads, strict=True))
    assert not any(grad[:, 20:].any() for grad in grads)


@pytest.mark.parametrize("plan", ["wide", "chunks"])
def test_smoothed_labels_of_logits_with_a_common_offset(plan):
    logits = [(8 * z).round() / 8 + 4096 for z in images(4)]  # exact sums and means of the students
    check(logits, indices(), {"label_smoothing": 0.9, "kd_weight": 0.0}, ALL[plan])


def test_many_rows_are_counted_before_the_launch(monkeypatch):
    target, options = LABELS["class weights"]
    right = launch(images(), target(), options, ALL["rows"])
    monkeypatch.setattr(problems, "MOST_ROWS_COUNTED", 2)
    came = launch(images(), target(), options, ALL["rows"])
    for a, b in zip((*came[0], *came[1]), (*right[0], *right[1]), strict=True):
        assert oracle.error(a, b) <= oracle.EPSILON


@pytest.mark.parametrize("plan", ["adjacent", "chunks"])
def test_labels_of_total_weight_zero(plan):
    options = {"class_weights": class_weights(), "label_smoothing": 0.2, "kd_weight": 0.0}
    output, grads = launch(images(), torch.full((OUTER, INNER), 3), options, ALL[plan])
    assert output.loss == 0 and not output.ce.any() and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("plan", ["wide", "adjacent", "chunks"])
def test_gradients_may_overwrite_the_logits(plan):
    logits, target = images(), indices()
    right, right_grads = launch(logits, target, {}, ALL[plan])
    result, made = ensemble_kd.loss_launch(problem(logits, target), logits, plan=ALL[plan])
    assert made.arguments.get("IN_PLACE", True)
    made.run(logits[0].device)
    for a, b in zip((*result.statistics, *logits), (*right, *right_grads), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("plan", ["adjacent", "chunks"])
def test_no_rows(plan):
    logits, target = [torch.empty(0, CLASSES, INNER)] * 2, torch.empty(0, INNER, dtype=torch.int64)
    output, _ = launch(logits, target, {"per_row": True, "mean": False}, ALL[plan], torch.empty(0))
    assert output.loss.shape == (0,) and output.ce.shape == (2, 0) and not output.correct.any()


@pytest.mark.parametrize("layout", ["channels last", "one plane", "cropped", "class dimension 0", "gradients alone"])
def test_strides(layout):
    logits, target = images(), indices()
    right, right_grads = launch(logits, target, {}, ALL["rows"])
    grads = [torch.empty_like(z) for z in logits]
    if layout == "channels last":
        logits = [z.movedim(1, -1).contiguous().movedim(-1, 1) for z in logits]
        grads = [torch.empty_like(z) for z in logits]
    elif layout == "one plane":
        logits = [z.movedim(1, 0).reshape(1, CLASSES, ROWS) for z in logits]
        grads, target = [torch.empty_like(z) for z in logits], target.reshape(1, ROWS)
    elif layout == "cropped":
        logits = [F.pad(z, (1, 2, 3, 1))[:, 3:-1, 1:-2] for z in logits]
    elif layout == "class dimension 0":
        logits = [z.movedim(1, 0).reshape(CLASSES, ROWS).t() for z in logits]
        grads, target = [torch.empty_like(z) for z in logits], target.reshape(ROWS)
    else:
        grads = [grad.movedim(1, -1).contiguous().movedim(-1, 1) for grad in grads]
    given = problem(logits, target)
    result, made = ensemble_kd.loss_launch(given, grads)
    made.run(given.device)
    assert made.arguments["UNIT"] == {"channels last": 1, "gradients alone": -1}.get(layout, 0)
    for a, b in zip((*result.statistics[:4], *grads), (*right[:4], *right_grads), strict=True):
        came = b if a.shape == b.shape else b.movedim(1, 0).reshape(CLASSES, ROWS)
        a = a if a.shape == b.shape else a.squeeze(0) if a.dim() == 3 else a.t()
        assert torch.allclose(a, came, rtol=1e-6, atol=1e-8)
    assert torch.equal(result.correct, right.correct)
