"""Standardised logits in the distillation terms: the formula, invariances, and rows without a standard deviation."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.losses import backends
from oekd_fast.losses.calls import EnsembleKDCall, KDOptions

from ..conftest import IMPLEMENTATIONS, ISAS, batch, needs_native
from ..support import objectives, oracle, plain_loss
from ..support.objective_calls import by_autograd
from ..support.plain_loss import standardised

pytestmark = pytest.mark.usefixtures("one_thread")
STUDENTS, ROWS, CLASSES = 3, 7, 13
KD = {"standardise_logits": True, "kd_weight": 9.0, "ce_weight": 0.0}
TERMS = {"standardise_logits": True, "kd_weight": 1.0, "ce_weight": 0.7}
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def teacher(rows=ROWS, classes=CLASSES):
    return 5 * torch.randn(rows, classes, generator=generator()) + 20


PLAIN = {
    "ensemble": {},
    "teacher, T = 3.5": {"teacher_logits": teacher(), "temperature": 3.5},
    "labels": {"ensemble_ce_weight": 0.5, "label_smoothing": 0.2, "weight": torch.arange(1.0, CLASSES + 1)},
    "a loss a row, T = 1": {"reduction": "none", "temperature": 1.0},
    "reverse": {"divergence_kind": "reverse", "teacher_logits": teacher()},
    "js": {"divergence_kind": "js", "beta": 0.3},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", PLAIN)
@each_implementation
def test_the_distillation_term_compares_standardised_logits(implementation, name, dtype):
    logits, target = batch(STUDENTS, ROWS, CLASSES, dtype=dtype)
    target[2] = -100
    options = {**TERMS, **PLAIN[name]}
    expected = plain_loss.Expected(logits, target, orders=64, **options)
    if "divergence_kind" in options:
        options["divergence"] = options.pop("divergence_kind")
    expected.check(*IMPLEMENTATIONS[implementation](logits, target, **options))


def mixed(z, y, *, mixing, teacher_logits, space):
    """The published formula for the targets of a mixture."""
    kl = partial(objectives.kl, temperature=2.0)
    sources, loss = [s.detach() for s in (*z, teacher_logits)], 0.0
    for row, student in zip(mixing.tolist(), z, strict=True):
        loss = loss + 0.7 * F.cross_entropy(student, y)
        if space == "logits":
            target = sum(w * source for w, source in zip(row, sources, strict=True) if w)
            loss = loss + kl(standardised(target), standardised(student))
        else:
            pairs = zip(row, sources, strict=True)
            loss = loss + sum(w * kl(standardised(s), standardised(student)) for w, s in pairs if w)
    return loss


@pytest.mark.parametrize("classes", [CLASSES, 2100])
@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("implementation", [name for name in IMPLEMENTATIONS if name != "triton"])
def test_mixtures_of_logits_are_standardised_once_and_those_of_probabilities_before(implementation, space, classes):
    logits, target = batch(STUDENTS, ROWS, classes)
    given = {"mixing": objectives.matrix(STUDENTS, STUDENTS + 1), "teacher_logits": teacher(ROWS, classes)}
    expected = objectives.Expected(partial(mixed, space=space), logits, target, given)
    expected.check(*IMPLEMENTATIONS[implementation](logits, target, mixing_space=space, **given, **TERMS))


@pytest.mark.parametrize("classes", [1023, 1025, 2100])
@pytest.mark.parametrize("implementation", [name for name in IMPLEMENTATIONS if name != "triton"])
def test_rows_of_several_tiles(implementation, classes):
    logits, target = batch(2, 4, classes)
    for divergence in ("forward", "reverse", "js"):
        expected = plain_loss.Expected(logits, target, divergence_kind=divergence, **TERMS)
        expected.check(*IMPLEMENTATIONS[implementation](logits, target, divergence=divergence, **TERMS))


def test_autograd_gives_the_gradients_of_one_call():
    logits, target = batch(STUDENTS, ROWS, CLASSES)
    expected = plain_loss.Expected(logits, target, orders=64, upstream=torch.tensor(2.5), **TERMS)
    for backend in ("reference", "auto"):
        output, grads, _ = by_autograd(logits, target, {}, backend, upstream=2.5, **TERMS)
        expected.check(output, grads)


def test_the_reference_is_differentiable_twice_and_through_an_attached_target():
    z = [torch.randn(2, 4, dtype=torch.float64, generator=generator(j)).requires_grad_() for j in range(2)]

    def loss(*logits):
        return ensemble_kd_loss(logits, None, detach_ensemble=False, backend="reference", **KD).loss

    assert torch.autograd.gradcheck(loss, z, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, z, fast_mode=True)


@each_implementation
def test_scale_and_mean_of_a_row_do_not_matter(implementation):
    logits, target = batch(STUDENTS, ROWS, CLASSES)
    logits = [(64 * z).round() / 64 for z in logits]  # exact, also after the change
    run, given = IMPLEMENTATIONS[implementation], {"teacher_logits": teacher().round(), **KD}
    output, grads = run(logits, target, **given)
    factors = 2.0 ** torch.arange(ROWS)[:, None]
    changed, changed_grads = run([factors * z + 1024 for z in logits], target, **given)
    assert oracle.error(changed.kd, output.kd.double()) <= 1e-6
    assert oracle.error(oracle.stack(changed_grads), oracle.stack(grads) / factors.double().numpy()) <= 1e-6
    for z, grad in zip(logits, grads, strict=True):
        size = grad.double().norm(dim=1)
        assert (grad.double().sum(dim=1).abs() <= 1e-6 * size).all()
        assert ((grad.double() * standardised(z.double())).sum(dim=1).abs() <= 3e-6 * size).all()


@each_implementation
def test_small_differences_of_large_logits(implementation):
    logits, target = batch(STUDENTS, ROWS, CLASSES)
    logits = [1e4 + 0.1 * z for z in logits]
    exact = [z.double() - 1e4 for z in logits]
    right, right_grads = ensemble_kd_value_and_grad(exact, target, teacher_logits=teacher().double(), **KD)
    output, grads = IMPLEMENTATIONS[implementation](logits, target, teacher_logits=teacher(), **KD)
    assert oracle.error(output.kd, right.kd) <= 5e-7
    assert oracle.error(oracle.stack(grads), oracle.stack(right_grads)) <= 1e-6


@pytest.mark.parametrize("classes", [1, 2, 40, 1500])
@pytest.mark.parametrize("implementation", [name for name in IMPLEMENTATIONS if name != "triton"] + ["triton"])
def test_constant_rows_are_zeros_without_a_gradient(implementation, classes):
    logits = [torch.full((3, classes), size) for size in (0.1, -873.3)]
    logits[1][0, 0] += 3.0  # a row that varies, unless it has one class
    given = teacher(3, classes)
    given[2] = 0.7
    output, grads = IMPLEMENTATIONS[implementation](logits, None, teacher_logits=given, reduction="none", **KD)
    for j, z in enumerate(logits):
        varies = (z != z[:, :1]).any(dim=1)
        assert not grads[j][~varies].any() and grads[j].isfinite().all()
        assert output.kd[j].isfinite().all()
        if classes > 2:  # with two classes, the standardised logits of a row that varies are 1 and -1
            assert bool(grads[j][varies].any()) == bool(varies.any())
    assert output.kd[0, 2] == 0 and output.kd[1, 2] == 0
    if classes > 2:
        right = objectives.kl(standardised(given[:1].double()), standardised(logits[1][:1].double()), 2.0).item()
        assert output.kd[1, 0].item() == pytest.approx(right, rel=1e-6)


@each_implementation
def test_logits_of_minus_infinity_are_left_out(implementation):
    logits, target = batch(STUDENTS, ROWS, CLASSES)
    few, few_teacher = [z[:, 3:].contiguous() for z in logits], teacher()[:, 3:].contiguous()
    given = teacher()
    for z in (*logits, given):
        z[:, :3] = -math.inf
    run = IMPLEMENTATIONS[implementation]
    output, grads = run(logits, None, teacher_logits=given, **KD)
    right, right_grads = run(few, None, teacher_logits=few_teacher, **KD)
    assert oracle.error(output.kd, right.kd.double()) <= 5e-7
    for grad, expected in zip(grads, right_grads, strict=True):
        assert not grad[:, :3].any()
        assert oracle.error(grad[:, 3:], expected.double()) <= 1e-6


@needs_native
@pytest.mark.parametrize("kind", ["rows", "blocks"])
def test_adjacent_rows_with_extreme_logits(kind):
    """Images, whose rows are in the lanes of vectors, against the kernel of single rows."""
    logits = [3 * torch.randn(2, 19, 33, generator=generator(j)) + 200 * j for j in range(STUDENTS)]
    logits[0][:, :, 5] = 0.25
    logits[1][:, 4] = -math.inf
    target = torch.randint(4, (2, 33), generator=generator())
    target[0, 7] = -100
    logits[2][0, :, 7] = math.nan
    given = torch.randn(2, 19, 33, generator=generator(9))
    options = {**KD, "ce_weight": 0.7, "teacher_logits": [given], "ensemble_weights": torch.tensor([0.5, 0.0, 0.5])}
    if kind == "blocks":
        logits = [torch.stack([z, z], dim=3)[..., 1] for z in logits]
    for isa in ISAS:
        output, grads = IMPLEMENTATIONS[f"native-{isa}"](logits, target, **options)
        flat = [z.movedim(1, -1).flatten(0, 1).contiguous() for z in (*logits, given)]
        one = {**options, "teacher_logits": [flat.pop()]}
        right, right_grads = IMPLEMENTATIONS[f"native-{isa}"](flat, target.flatten(), **one)
        assert all(map(partial(torch.allclose, rtol=1e-6, equal_nan=True), output, right))
        for grad, expected in zip(grads, right_grads, strict=True):
            torch.testing.assert_close(grad.movedim(1, -1).flatten(0, 1), expected, rtol=2e-6, atol=1e-8)


def test_triton_needs_whole_rows_and_a_detached_target():
    def unsupported(classes, **options):
        call = EnsembleKDCall.of([torch.zeros(2, classes)] * 5, None, KDOptions(**options, **KD))
        return backends.TRITON.resident_only(call), backends.TRITON._unsupported_objective(call, ["standardise_logits"])

    assert unsupported(100) == (["standardise_logits"], None)
    assert unsupported(32_000)[1] == (
        "expected a row of all students and teachers to fit the registers with standardise_logits, "
        "got 5 students, 0 teachers and C = 32000"
    )
    assert unsupported(100, detach_ensemble=False)[1] == (
        "expected detach_ensemble=True beside standardise_logits=True, got False"
    )
