"""Several external teachers: K sets of logits, mixed into the targets of the students."""

import math
from functools import partial

import pytest
import torch

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from .. import conftest
from ..conftest import batch
from ..support import oracle
from ..support.objectives import Expected, generator, matrix, mixed_logits, mixed_probabilities, others

pytestmark = pytest.mark.usefixtures("one_thread")
STUDENTS, ROWS, CLASSES = 3, 7, 13
FORMULAS = {"logits": mixed_logits, "probabilities": mixed_probabilities}
# Triton's interpreter is slow, so tests/kernels has its own tests.
BACKENDS = [name for name in conftest.BACKENDS if name != "triton"]


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    return request.param


@pytest.fixture(params=FORMULAS)
def space(request) -> str:
    return request.param


def teachers(count, rows=ROWS, classes=CLASSES):
    return 3.0 * torch.randn(count, rows, classes, generator=generator())


def value_and_grad(logits, target, teacher_logits, mixing, space, backend, **options):
    return ensemble_kd_value_and_grad(
        logits, target, teacher_logits=teacher_logits, mixing=mixing, mixing_space=space, backend=backend, **options
    )


def assert_equal(came, expected):
    for a, b in zip((*came[0], *came[1]), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("classes", [CLASSES, 1500])
@pytest.mark.parametrize("temperature", [2.0, 2.5])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_the_loss_is_the_formula_for_any_number_of_teachers(backend, space, count, temperature, classes):
    logits, target = batch(STUDENTS, ROWS, classes)
    target[2] = -100
    tensors = {"teacher_logits": teachers(count, classes=classes), "mixing": matrix(STUDENTS, STUDENTS + count)}
    expected = Expected(partial(FORMULAS[space], temperature=temperature), logits, target, tensors, upstream=2.5)
    grads = [torch.full_like(z, math.nan) for z in logits]
    output, _ = value_and_grad(
        logits,
        target,
        *tensors.values(),
        space,
        backend,
        temperature=temperature,
        grad_scale=torch.tensor(2.5),
        out=grads,
    )
    expected.check(output, grads)


def test_a_sequence_of_teachers_is_the_stacked_tensor_whatever_the_strides(backend, space):
    logits, target = batch(STUDENTS)
    stacked, mixing = teachers(3), matrix(STUDENTS, STUDENTS + 3)
    expected = value_and_grad(logits, target, stacked, mixing, space, backend)
    assert_equal(value_and_grad(logits, target, list(stacked), mixing, space, backend), expected)
    strided = stacked.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert_equal(value_and_grad(logits, target, strided, mixing, space, backend), expected)
    rows = tuple(teacher.t().contiguous().t() for teacher in stacked)
    assert_equal(value_and_grad(logits, target, rows, mixing, space, backend), expected)


def test_teachers_may_have_different_dtypes(backend, space):
    logits, target = batch(STUDENTS)
    stacked, mixing = teachers(4).bfloat16().half().float(), matrix(STUDENTS, STUDENTS + 4)
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    mixed = [teacher.to(dtype) for teacher, dtype in zip(stacked, dtypes, strict=True)]
    expected = value_and_grad(logits, target, stacked, mixing, space, backend)
    assert_equal(value_and_grad(logits, target, mixed, mixing, space, backend), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_students_learn_from_teachers_in_fp32(backend, space, dtype):
    logits, target = batch(STUDENTS, dtype=dtype)
    tensors = {"teacher_logits": teachers(2), "mixing": matrix(STUDENTS, STUDENTS + 2)}
    came = value_and_grad(logits, target, *tensors.values(), space, backend)
    Expected(FORMULAS[space], logits, target, tensors).check(*came)


def test_one_teacher_in_three_dimensions_needs_no_mixing(backend):
    logits, target = batch(STUDENTS)
    (teacher,) = teachers(1)
    expected = ensemble_kd_value_and_grad(logits, target, teacher_logits=teacher, backend=backend)
    for given in (teacher[None], [teacher]):
        came = ensemble_kd_value_and_grad(logits, target, teacher_logits=given, backend=backend)
        assert_equal(came, expected)


def test_teachers_with_weight_zero_are_excluded_even_if_their_logits_are_minus_infinity(backend, space):
    logits, target = batch(STUDENTS)
    given, mixing = teachers(3), matrix(STUDENTS, STUDENTS + 3)
    mixing[:, STUDENTS + 1] = 0.0
    given[1] = -math.inf
    kept = [j for j in range(STUDENTS + 3) if j != STUDENTS + 1]
    expected = value_and_grad(logits, target, given[[0, 2]], mixing[:, kept], space, backend)
    assert_equal(value_and_grad(logits, target, given, mixing, space, backend), expected)


def test_the_order_of_the_teachers_changes_only_rounding(backend, space):
    logits, target = batch(STUDENTS)
    given, mixing = teachers(3), matrix(STUDENTS, STUDENTS + 3)
    order = [2, 0, 1]
    moved = [*range(STUDENTS), *(STUDENTS + k for k in order)]
    expected = value_and_grad(logits, target, given, mixing, space, backend)
    came = value_and_grad(logits, target, given[order], mixing[:, moved], space, backend)
    for a, b in zip((*came[0], *came[1]), (*expected[0], *expected[1]), strict=True):
        assert oracle.error(a, b) <= 8 * oracle.EPSILON


def test_copies_as_teachers_give_what_copies_as_further_students_give(backend):
    """The same targets by another way: copies as students 4 to 6, whose own losses are left out."""
    logits, target = batch(STUDENTS)
    copies = batch(STUDENTS, seed=1)[0]
    columns = others(STUDENTS).float()
    mixing = torch.cat([torch.zeros(STUDENTS, STUDENTS), columns], dim=1)
    options = {"temperature": 1.0, "ce_weight": 1.0, "kd_weight": 1.0}
    output, grads = value_and_grad(logits, target, copies, mixing, "probabilities", backend, **options)
    square = torch.zeros(2 * STUDENTS, 2 * STUDENTS)
    square[:STUDENTS, STUDENTS:] = columns
    weights = torch.tensor([1 / STUDENTS] * STUDENTS + [0.0] * STUDENTS)
    twice, grads_of_all = ensemble_kd_value_and_grad(
        [*logits, *copies],
        target,
        ensemble_weights=weights,
        mixing=square,
        mixing_space="probabilities",
        backend=backend,
        **options,
    )
    assert torch.equal(output.correct, twice.correct[[*range(STUDENTS), -1]])
    assert oracle.error(output.ce, twice.ce[:STUDENTS]) <= oracle.EPSILON
    assert oracle.error(output.kd, twice.kd[:STUDENTS]) <= oracle.EPSILON
    assert oracle.error(output.ensemble_ce, twice.ensemble_ce) <= 4 * oracle.EPSILON
    assert oracle.error(output.loss, (twice.ce + twice.kd)[:STUDENTS].double().sum()) <= 2 * oracle.EPSILON
    assert oracle.error(oracle.stack(grads), oracle.stack(grads_of_all[:STUDENTS])) <= oracle.EPSILON


def test_teachers_get_no_gradient(backend, space):
    logits, target = batch(STUDENTS)
    given = teachers(2).requires_grad_()
    leaves = [z.requires_grad_() for z in logits]
    mixing = matrix(STUDENTS, STUDENTS + 2)
    options = {"teacher_logits": given, "mixing": mixing, "mixing_space": space, "backend": backend}
    ensemble_kd_loss(leaves, target, **options).loss.backward()
    assert given.grad is None and all(z.grad.any() for z in leaves)


@pytest.mark.slow
def test_a_compiled_call_with_teachers_is_one_graph(space):
    logits, target = batch(STUDENTS)
    given, mixing = teachers(2), matrix(STUDENTS, STUDENTS + 2)

    def step(z, teacher_logits):
        options = {"teacher_logits": teacher_logits, "mixing": mixing, "mixing_space": space}
        return 1.5 * ensemble_kd_loss(z, target, **options).loss

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for teacher_logits in (given, list(given)):
        losses, grads = [], []
        for function in (step, compiled):
            leaves = [z.clone().requires_grad_() for z in logits]
            loss = function(leaves, teacher_logits)
            losses.append(loss.detach())
            grads.append(oracle.stack(torch.autograd.grad(loss, leaves)))
        assert oracle.error(*losses) <= oracle.EPSILON
        assert oracle.error(*grads) <= oracle.EPSILON
    torch.compiler.reset()
