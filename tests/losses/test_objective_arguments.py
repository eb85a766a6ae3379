"""The arguments of related objectives: entries of 0, what is differentiated, dtypes, strides, grad modes."""

import math

import pytest
import torch
import torch.nn.functional as F

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import batch
from ..support import oracle
from ..support.objective_calls import BACKENDS, ROWS, STUDENTS, at_once, by_autograd, case
from ..support.objectives import Expected, gate, kl, mixed_logits, mixed_probabilities, one, others, teacher, weighted

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    return request.param


# -- weights of 0


def excluding(students=3):
    """The last student excludes classes that the others do not."""
    logits, target = batch(students, 6, 9)
    logits[-1][:, 4:] = -math.inf
    return logits, target % 4


def test_a_gate_entry_of_zero_excludes_a_student_even_if_it_is_minus_infinity(backend):
    logits, target = excluding()
    # With the ensemble as target, its probability of the excluded classes would cost infinity.
    tensors = {"ensemble_weights": gate(6, 3), "teacher_logits": teacher(6, 9)}
    tensors["ensemble_weights"][::2, -1] = 0.0
    tensors["teacher_logits"][:, 4:] = -math.inf
    output, grads, weights_grad = at_once(logits, target, tensors, backend, ensemble_ce_weight=1.0)

    def taught(z, y, ensemble_weights, teacher_logits):
        loss = F.cross_entropy(weighted(z, ensemble_weights), y)
        return loss + sum(0.7 * F.cross_entropy(student, y) + 0.15 * kl(teacher_logits, student, 2.0) for student in z)

    right = Expected(taught, logits, target, tensors)
    right.check(output, grads)
    # The derivative by a weight of 0 would be infinite at an excluded class. It counts as 0.
    assert weights_grad.isfinite().all()
    for there in ((slice(None), slice(2)), (slice(1, None, 2), slice(None))):
        assert oracle.error(weights_grad[there], right.truth.weights_grad[there]) <= 4 * oracle.EPSILON


@pytest.mark.parametrize("formula, mixing_space", [(mixed_logits, "logits"), (mixed_probabilities, "probabilities")])
def test_a_mixing_entry_of_zero_excludes_a_student_even_if_it_is_minus_infinity(backend, formula, mixing_space):
    logits, target = excluding()
    mixing = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    actual = at_once(logits, target, {"mixing": mixing}, backend, mixing_space=mixing_space)
    assert actual[0].kd.isfinite().all() and actual[0].kd[2] <= oracle.EPSILON
    Expected(formula, logits, target, {"mixing": mixing}).check(*actual)


@pytest.mark.parametrize("mixing_space", ["logits", "probabilities"])
def test_a_mixing_entry_of_zero_excludes_a_teacher_even_if_it_is_minus_infinity(backend, mixing_space):
    logits, target = batch(3, 6, 9)
    mixing = torch.cat([others(3), torch.zeros(3, 1)], dim=1)
    excluding = torch.full((6, 9), -math.inf)
    tensors = {"mixing": mixing, "teacher_logits": excluding}
    actual = at_once(logits, target, tensors, backend, mixing_space=mixing_space)
    expected = at_once(logits, target, {"mixing": others(3)}, backend, mixing_space=mixing_space)
    assert all(torch.equal(a, b) for a, b in zip(actual[0], expected[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(actual[1], expected[1], strict=True))


def test_a_target_that_a_student_excludes_costs_infinity(backend):
    logits, target = excluding()
    output, grads, _ = at_once(logits, target, {"teacher_logits": teacher(6, 9)}, backend)
    assert output.kd.tolist()[2] == math.inf == output.loss and output.kd[:2].isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)


# -- single statements of the arguments


def test_mixing_matrices_reproduce_the_paper_and_an_external_teacher(backend):
    """A matrix of 1/S equals the paper's ensemble; the last column alone equals an external teacher."""
    logits, target = batch(STUDENTS)
    paper = at_once(logits, target, {}, backend)
    external = {"teacher_logits": teacher(7, 13)}
    hinton = at_once(logits, target, external, backend)
    last = torch.cat([torch.zeros(STUDENTS, STUDENTS), torch.ones(STUDENTS, 1)], dim=1)
    equal = torch.full((STUDENTS, STUDENTS), 1 / STUDENTS)
    for mixing_space in ("logits", "probabilities"):
        same_teacher = at_once(logits, target, {"mixing": last, **external}, backend, mixing_space=mixing_space)
        assert oracle.error(same_teacher[0].kd, hinton[0].kd) <= 4 * oracle.EPSILON
        assert oracle.error(oracle.stack(same_teacher[1]), oracle.stack(hinton[1])) <= 4 * oracle.EPSILON
    same_ensemble = at_once(logits, target, {"mixing": equal}, backend)
    assert oracle.error(same_ensemble[0].kd, paper[0].kd) <= 8 * oracle.EPSILON
    assert oracle.error(oracle.stack(same_ensemble[1]), oracle.stack(paper[1])) <= 8 * oracle.EPSILON


def test_a_gate_of_equal_rows_is_weights(backend):
    logits, target = batch(3)
    weights = torch.tensor([0.5, 0.3, 0.2])
    expected = at_once(logits, target, {"ensemble_weights": weights}, backend, ensemble_ce_weight=0.5)
    gate_of_equal_rows = {"ensemble_weights": weights.expand(7, 3).clone()}
    actual = at_once(logits, target, gate_of_equal_rows, backend, ensemble_ce_weight=0.5)
    for a, b in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
        assert oracle.error(a, b) <= 2 * oracle.EPSILON
    assert oracle.error(actual[2].double().sum(dim=0), expected[2]) <= 4 * oracle.EPSILON


@pytest.mark.parametrize("more", [{"teacher_logits": teacher(7, 13)}, {"mixing": others(3)}], ids=lambda m: [*m][0])
def test_the_statistics_of_the_ensemble_do_not_depend_on_the_targets(backend, more):
    logits, target = batch(3)
    weights = torch.tensor([0.5, 0.3, 0.2])
    paper = at_once(logits, target, {"ensemble_weights": weights}, backend)[0]
    output = at_once(logits, target, {"ensemble_weights": weights, **more}, backend)[0]
    assert oracle.error(output.ensemble_ce, paper.ensemble_ce) <= oracle.EPSILON
    assert torch.equal(output.correct, paper.correct) and oracle.error(output.ce, paper.ce) <= oracle.EPSILON


@pytest.mark.parametrize("attached", [False, True])
def test_one_with_its_target_attached(attached):
    # With an attached target, the divergence has a gradient for the gate too.
    _, logits, target, tensors, arguments = case("one")
    for form in (at_once, by_autograd):
        actual = form(logits, target, tensors, "auto", detach_ensemble=not attached, **arguments)
        Expected(
            lambda z, y, ensemble_weights: one(z, y, ensemble_weights=ensemble_weights, attached=attached),
            logits, target, tensors,
        ).check(*actual)  # fmt: skip


def test_a_gate_on_which_the_loss_does_not_depend_gets_no_gradient(backend):
    logits, target = batch(3)
    weights = gate(7, 3).requires_grad_()
    loss = ensemble_kd_loss(
        [z.requires_grad_() for z in logits], target, ensemble_weights=weights, backend=backend
    ).loss
    loss.backward()
    assert weights.grad is None
    weights_grad = torch.full_like(weights, math.nan, requires_grad=False)
    ensemble_kd_value_and_grad(logits, target, ensemble_weights=weights, weights_grad=weights_grad, backend=backend)
    assert not weights_grad.any()


def test_the_gate_alone_may_require_a_gradient(backend):
    formula, logits, target, tensors, arguments = case("one")
    weights = tensors["ensemble_weights"].requires_grad_()
    ensemble_kd_loss(logits, target, ensemble_weights=weights, backend=backend, **arguments).loss.backward()
    right = Expected(formula, logits, target, tensors)
    right.allowance.check("weights_grad", oracle.error(weights.grad, right.truth.weights_grad))


def test_external_teachers_are_never_differentiated(backend):
    logits, target = batch(3)
    v = teacher(7, 13).requires_grad_()
    assert not ensemble_kd_loss(logits, target, teacher_logits=v, backend=backend).loss.requires_grad
    leaves = [z.clone().requires_grad_() for z in logits]
    ensemble_kd_loss(leaves, target, teacher_logits=v, backend=backend).loss.backward()
    assert v.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_teachers_gates_and_matrices_of_any_floating_dtype_and_strides(backend, dtype):
    logits, target = batch(3)
    exact = {
        "teacher_logits": teacher(7, 13).bfloat16().half().float(),
        "mixing": torch.tensor([[0.5, 0.0, 0.25, 0.25]] * 3),
    }
    gated = {"ensemble_weights": torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.5, -0.5]]).repeat(4, 1)[:7]}
    for tensors, arguments in (
        (exact, {}),
        (exact, {"mixing_space": "probabilities"}),
        (gated, {"ensemble_ce_weight": 0.5}),
    ):
        expected = at_once(logits, target, tensors, backend, **arguments)
        strided = {name: t.to(dtype).t().contiguous().t() for name, t in tensors.items()}
        actual = at_once(logits, target, strided, backend, **arguments)
        for a, b in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
            assert torch.equal(a, b)


def test_weights_grad_is_scaled_and_written_to_strided_buffers(backend):
    formula, logits, target, tensors, arguments = case("one")
    whole = torch.full((2 * ROWS, 2 * STUDENTS), math.nan)
    buffer = whole[::2, 1::2]
    ensemble_kd_value_and_grad(
        logits, target, weights_grad=buffer, grad_scale=torch.tensor(2.5), backend=backend, **tensors, **arguments
    )
    right = Expected(formula, logits, target, tensors, upstream=2.5)
    right.allowance.check("weights_grad", oracle.error(buffer, right.truth.weights_grad))
    assert whole.isnan().sum() == whole.numel() - buffer.numel()


def test_ensemble_ce_weight_in_a_tensor_is_the_number_in_it(backend):
    _, logits, target, tensors, arguments = case("one")
    # Kernels save exponentials only if they know that T is a small integer.
    arguments = arguments | {"temperature": 8.0}
    expected = at_once(logits, target, tensors, backend, **arguments | {"ensemble_ce_weight": 0.75})
    weight = torch.tensor(0.75)
    actual = at_once(logits, target, tensors, backend, **arguments | {"ensemble_ce_weight": weight})
    assert all(torch.equal(a, b) for a, b in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True))
    assert torch.equal(actual[2], expected[2])
    with pytest.raises(ValueError, match="ensemble_ce_weight: expected a finite number, got inf"):
        at_once(logits, target, tensors, backend, **arguments | {"ensemble_ce_weight": torch.tensor(math.inf)})
    weight.fill_(0.0)
    actual = at_once(logits, target, tensors, backend, **arguments | {"ensemble_ce_weight": weight})
    assert not actual[2].any()


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", ["hinton", "mutual", "one"])
def test_in_every_grad_mode(backend, name, grad_mode):
    with grad_mode():
        formula, logits, target, tensors, arguments = case(name)
        actual = at_once(logits, target, tensors, backend, **arguments)
        value = ensemble_kd_loss(logits, target, backend=backend, **tensors, **arguments)
    assert torch.equal(value.loss, actual[0].loss)
    tensors = {key: t.clone() for key, t in tensors.items()}
    Expected(formula, [z.clone() for z in logits], target.clone(), tensors).check(*actual)


def test_stacked_logits(backend):
    for name in ("hinton", "mutual", "one"):
        formula, logits, target, tensors, arguments = case(name)
        stacked = torch.stack(logits).requires_grad_()
        loss = ensemble_kd_loss(stacked, target, backend=backend, **tensors, **arguments).loss
        loss.backward()
        Expected(formula, logits, target, tensors).check(
            at_once(logits, target, tensors, backend, **arguments)[0], list(stacked.grad.unbind(0))
        )


@pytest.mark.parametrize("name", ["hinton", "mutual", "one", "logits and a teacher mixed, T = 2.5"])
def test_gradcheck(name):
    # The targets are constant students, since finite differences would move detached ones.
    _, logits, target, tensors, arguments = case(name, torch.float64, students=3, rows=4, classes=5)
    if "mixing" in tensors:
        tensors["mixing"][:, 0] = 0.0
    of_gate = [tensors["ensemble_weights"].requires_grad_()] if "ensemble_weights" in tensors else []
    attached = {"detach_ensemble": False} if of_gate else {}

    def loss(student, *_):
        z = [student, *logits[1:]]
        return ensemble_kd_loss(z, target, backend="reference", **tensors, **arguments, **attached).loss

    inputs = (logits[0].requires_grad_(), *of_gate)
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)
