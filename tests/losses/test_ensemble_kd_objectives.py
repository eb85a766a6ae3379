"""Gates, the ensemble's cross-entropy, external teachers and mixing: published objectives as arguments of one loss."""

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from oekd_fast import EnsembleKDLoss, ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.losses.calls import KDOptions

from .. import conftest
from ..conftest import batch
from ..support import oracle
from ..support.objectives import (
    OBJECTIVES,
    Expected,
    gate,
    kl,
    mixed_logits,
    mixed_probabilities,
    one,
    others,
    teacher,
    weighted,
)

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Triton's interpreter is slow: it runs fewer tests, in tests/kernels/test_ensemble_kd_triton_objectives.py.
BACKENDS = ("auto", *(name for name in conftest.BACKENDS if name != "triton"))
IMPLEMENTATIONS = {name: function for name, function in conftest.IMPLEMENTATIONS.items() if name != "triton"}
ROWS, CLASSES, STUDENTS = 7, 13, 4


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    return request.param


def case(name, dtype=torch.float32, students=STUDENTS, rows=ROWS, classes=CLASSES):
    """Formula, logits, target, tensors and arguments of an objective; a row is ignored."""
    formula, tensors, arguments = OBJECTIVES[name]
    logits, target = batch(students, rows, classes, dtype=dtype)
    target[rows // 2] = -100
    tensors = tensors(students, rows, classes)
    if dtype == torch.float64:
        tensors = {name: tensor.double() for name, tensor in tensors.items()}
    return formula, logits, target, tensors, arguments


def at_once(logits, target, tensors, implementation, **arguments):
    weights_grad = None
    if "ensemble_weights" in tensors:
        weights_grad = torch.full_like(tensors["ensemble_weights"], math.nan)
    arguments = {**tensors, **arguments, "weights_grad": weights_grad}
    if implementation in IMPLEMENTATIONS:
        output, grads = IMPLEMENTATIONS[implementation](logits, target, **arguments)
    else:
        output, grads = ensemble_kd_value_and_grad(logits, target, backend=implementation, **arguments)
    return output, grads, weights_grad


def by_autograd(logits, target, tensors, backend, upstream=1.0, **arguments):
    leaves = [z.detach().requires_grad_() for z in logits]
    tensors = dict(tensors)
    of = list(leaves)
    if "ensemble_weights" in tensors:
        tensors["ensemble_weights"] = tensors["ensemble_weights"].detach().requires_grad_()
        of.append(tensors["ensemble_weights"])
    output = ensemble_kd_loss(leaves, target, backend=backend, **tensors, **arguments)
    grads = torch.autograd.grad(
        output.loss, of, torch.tensor(upstream, dtype=output.loss.dtype), materialize_grads=True
    )
    return output, grads[: len(leaves)], grads[-1] if len(of) > len(leaves) else None


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
        pytest.skip("kernels take no fp64")
    came = at_once(logits, target, tensors, implementation, **arguments)
    expected(name, DTYPES[dtype]).check(*came)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_autograd_is_the_published_formula(backend, name, dtype):
    _, logits, target, tensors, arguments = case(name, DTYPES[dtype])
    if dtype == "fp64" and backend == "native":
        pytest.skip("kernels take no fp64")
    expected(name, DTYPES[dtype]).check(*by_autograd(logits, target, tensors, backend, **arguments))


@pytest.mark.parametrize("students, classes", [(5, 1), (1, 40), (2, 2), (5, 1500)])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sizes(implementation, name, students, classes):
    if students == 1 and name in ("mutual", "codistillation"):
        pytest.skip("one student has no others")
    sizes = {"students": students, "classes": classes}
    _, logits, target, tensors, arguments = case(name, **sizes)
    came = at_once(logits, target, tensors, implementation, **arguments)
    if classes > 1:
        expected(name, torch.float32, **sizes).check(*came)
    else:  # nothing to learn, but for the rounding of terms of 1 that cancel
        assert abs(came[0].loss) <= oracle.EPSILON
        assert all(grad.abs().max() <= oracle.EPSILON for grad in came[1])


@pytest.mark.parametrize("upstream", [1.0, 2.5])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_upstream_gradient_and_grad_scale(backend, name, upstream):
    formula, logits, target, tensors, arguments = case(name)
    right = Expected(formula, logits, target, tensors, upstream=upstream)
    for form, scale in ((by_autograd, {"upstream": upstream}), (at_once, {"grad_scale": torch.tensor(upstream)})):
        output, grads, weights_grad = form(logits, target, tensors, backend, **scale, **arguments)
        right.check(output, grads, weights_grad)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sum_is_mean_times_the_rows_that_count(backend, name):
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
def test_nothing_counted_gives_nothing(backend, name, rows, reduction):
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
    came = at_once(logits, target, tensors, backend, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(came[0], expected[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(came[1], expected[1], strict=True))
    assert came[2] is None or torch.equal(came[2], expected[2])
    assert not any(grad[ignored].any() for grad in came[1])


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
    # Longer than any tile of a kernel: parts of the row hold -inf alone.
    formula, logits, target, tensors, arguments = case(name, rows=3, classes=1500)
    for key in ("mixing", "ensemble_weights"):
        if key in tensors:
            tensors[key] = tensors[key].abs()  # less than 0 times -inf excludes nothing
    for scores in (*logits, *(tensors[key] for key in tensors if key == "teacher_logits")):
        scores[..., :1100] = -math.inf
    target = torch.where(target >= 0, 1100 + target % 400, target)
    came = at_once(logits, target, tensors, implementation, **arguments)
    Expected(formula, logits, target, tensors).check(*came)


@pytest.mark.parametrize("name", NOT_SMOOTHED)
def test_classes_that_all_exclude(backend, name):
    formula, logits, target, tensors, arguments = case(name)
    if "mixing" in tensors:
        tensors["mixing"] = tensors["mixing"].abs()  # less than 0 times -inf excludes nothing
    if "ensemble_weights" in tensors:
        tensors["ensemble_weights"] = tensors["ensemble_weights"].abs()
    for scores in (*logits, *(tensors[key] for key in tensors if key == "teacher_logits")):
        scores[..., 1::3] = -math.inf
    target = torch.where(target >= 0, target // 3 * 3, target)
    came = at_once(logits, target, tensors, backend, **arguments)
    Expected(formula, logits, target, tensors).check(*came)


# -- weights of 0


def excluding(students=3):
    """The last student excludes classes that the others do not."""
    logits, target = batch(students, 6, 9)
    logits[-1][:, 4:] = -math.inf
    return logits, target % 4


def test_in_a_gate_zero_has_no_say_even_where_it_is_minus_infinity(backend):
    logits, target = excluding()
    # A target of its own, or what the ensemble gives to the classes that are excluded would cost infinity.
    tensors = {"ensemble_weights": gate(6, 3), "teacher_logits": teacher(6, 9)}
    tensors["ensemble_weights"][::2, -1] = 0.0
    tensors["teacher_logits"][:, 4:] = -math.inf
    output, grads, weights_grad = at_once(logits, target, tensors, backend, ensemble_ce_weight=1.0)

    def taught(z, y, ensemble_weights, teacher_logits):
        loss = F.cross_entropy(weighted(z, ensemble_weights), y)
        return loss + sum(0.7 * F.cross_entropy(student, y) + 0.15 * kl(teacher_logits, student, 2.0) for student in z)

    right = Expected(taught, logits, target, tensors)
    right.check(output, grads)
    # What the weight of 0 would do to an excluded class is minus infinity at once: it counts 0.
    assert weights_grad.isfinite().all()
    for there in ((slice(None), slice(2)), (slice(1, None, 2), slice(None))):
        assert oracle.error(weights_grad[there], right.truth.weights_grad[there]) <= 4 * oracle.EPSILON


@pytest.mark.parametrize("formula, mixing_space", [(mixed_logits, "logits"), (mixed_probabilities, "probabilities")])
def test_in_a_mixing_matrix_zero_has_no_say_even_where_it_is_minus_infinity(backend, formula, mixing_space):
    logits, target = excluding()
    mixing = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    came = at_once(logits, target, {"mixing": mixing}, backend, mixing_space=mixing_space)
    assert came[0].kd.isfinite().all() and came[0].kd[2] <= oracle.EPSILON
    Expected(formula, logits, target, {"mixing": mixing}).check(*came)


@pytest.mark.parametrize("mixing_space", ["logits", "probabilities"])
def test_a_teacher_of_weight_zero_has_no_say_even_where_it_is_minus_infinity(backend, mixing_space):
    logits, target = batch(3, 6, 9)
    mixing = torch.cat([others(3), torch.zeros(3, 1)], dim=1)
    excluding = torch.full((6, 9), -math.inf)
    came = at_once(logits, target, {"mixing": mixing, "teacher_logits": excluding}, backend, mixing_space=mixing_space)
    expected = at_once(logits, target, {"mixing": others(3)}, backend, mixing_space=mixing_space)
    assert all(torch.equal(a, b) for a, b in zip(came[0], expected[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(came[1], expected[1], strict=True))


def test_a_target_that_a_student_excludes_costs_infinity(backend):
    logits, target = excluding()
    output, grads, _ = at_once(logits, target, {"teacher_logits": teacher(6, 9)}, backend)
    assert output.kd.tolist()[2] == math.inf == output.loss and output.kd[:2].isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)


# -- what the arguments say, in so many words


def test_one_kernel_serves_them_all(backend):
    """A matrix of 1/S is the paper's ensemble; the last column alone is an external teacher."""
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
    came = at_once(logits, target, {"ensemble_weights": weights.expand(7, 3).clone()}, backend, ensemble_ce_weight=0.5)
    for a, b in zip((*came[0], *came[1]), (*expected[0], *expected[1]), strict=True):
        assert oracle.error(a, b) <= 2 * oracle.EPSILON
    assert oracle.error(came[2].double().sum(dim=0), expected[2]) <= 4 * oracle.EPSILON


@pytest.mark.parametrize("more", [{"teacher_logits": teacher(7, 13)}, {"mixing": others(3)}], ids=lambda m: [*m][0])
def test_the_ensembles_statistics_stay_its_own(backend, more):
    logits, target = batch(3)
    weights = torch.tensor([0.5, 0.3, 0.2])
    paper = at_once(logits, target, {"ensemble_weights": weights}, backend)[0]
    output = at_once(logits, target, {"ensemble_weights": weights, **more}, backend)[0]
    assert oracle.error(output.ensemble_ce, paper.ensemble_ce) <= oracle.EPSILON
    assert torch.equal(output.correct, paper.correct) and oracle.error(output.ce, paper.ce) <= oracle.EPSILON


@pytest.mark.parametrize("attached", [False, True])
def test_one_with_its_target_attached(attached):
    # Here the divergence moves the gate too.
    _, logits, target, tensors, arguments = case("one")
    for form in (at_once, by_autograd):
        came = form(logits, target, tensors, "auto", detach_ensemble=not attached, **arguments)
        Expected(
            lambda z, y, ensemble_weights: one(z, y, ensemble_weights=ensemble_weights, attached=attached),
            logits, target, tensors,
        ).check(*came)  # fmt: skip


def test_a_gate_without_a_say_in_the_gradient_gets_none(backend):
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
    assert oracle.error(weights.grad, right.truth.weights_grad) <= right.allowed["weights_grad"]


def test_external_teacher_and_mixing_are_never_differentiated(backend):
    logits, target = batch(3)
    tensors = {"teacher_logits": teacher(7, 13).requires_grad_(), "mixing": torch.rand(3, 4).requires_grad_()}
    for mixing_space in ("logits", "probabilities"):
        assert not ensemble_kd_loss(
            logits, target, mixing_space=mixing_space, backend=backend, **tensors
        ).loss.requires_grad
        leaves = [z.clone().requires_grad_() for z in logits]
        ensemble_kd_loss(leaves, target, mixing_space=mixing_space, backend=backend, **tensors).loss.backward()
        assert all(tensor.grad is None for tensor in tensors.values())


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
        came = at_once(logits, target, strided, backend, **arguments)
        for a, b in zip((*came[0], *came[1]), (*expected[0], *expected[1]), strict=True):
            assert torch.equal(a, b)


def test_weights_grad_is_scaled_and_written_wherever_it_lies(backend):
    formula, logits, target, tensors, arguments = case("one")
    whole = torch.full((2 * ROWS, 2 * STUDENTS), math.nan)
    buffer = whole[::2, 1::2]
    ensemble_kd_value_and_grad(
        logits, target, weights_grad=buffer, grad_scale=torch.tensor(2.5), backend=backend, **tensors, **arguments
    )
    right = Expected(formula, logits, target, tensors, upstream=2.5)
    assert oracle.error(buffer, right.truth.weights_grad) <= right.allowed["weights_grad"]
    assert whole.isnan().sum() == whole.numel() - buffer.numel()


def test_ensemble_ce_weight_in_a_tensor_is_the_number_in_it(backend):
    _, logits, target, tensors, arguments = case("one")
    arguments = arguments | {"temperature": 8.0}  # no small integer: kernels save exponentials where they know one
    expected = at_once(logits, target, tensors, backend, **arguments | {"ensemble_ce_weight": 0.75})
    weight = torch.tensor(0.75)
    came = at_once(logits, target, tensors, backend, **arguments | {"ensemble_ce_weight": weight})
    assert all(torch.equal(a, b) for a, b in zip((*came[0], *came[1]), (*expected[0], *expected[1]), strict=True))
    assert torch.equal(came[2], expected[2])
    with pytest.raises(ValueError, match="ensemble_ce_weight: expected a finite number, got inf"):
        at_once(logits, target, tensors, backend, **arguments | {"ensemble_ce_weight": torch.tensor(math.inf)})
    weight.fill_(0.0)
    came = at_once(logits, target, tensors, backend, **arguments | {"ensemble_ce_weight": weight})
    assert not came[2].any()


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", ["hinton", "mutual", "one"])
def test_in_every_grad_mode(backend, name, grad_mode):
    with grad_mode():
        formula, logits, target, tensors, arguments = case(name)
        came = at_once(logits, target, tensors, backend, **arguments)
        value = ensemble_kd_loss(logits, target, backend=backend, **tensors, **arguments)
    assert torch.equal(value.loss, came[0].loss)
    tensors = {key: t.clone() for key, t in tensors.items()}
    Expected(formula, [z.clone() for z in logits], target.clone(), tensors).check(*came)


def test_stacked_logits(backend):
    for name in ("hinton", "mutual", "one"):
        formula, logits, target, tensors, arguments = case(name)
        stacked = torch.stack(logits).requires_grad_()
        loss = ensemble_kd_loss(stacked, target, backend=backend, **tensors, **arguments).loss
        loss.backward()
        Expected(formula, logits, target, tensors).check(
            at_once(logits, target, tensors, backend, **arguments)[0], list(stacked.grad.unbind(0))
        )


def test_module_takes_teachers_and_gates_with_the_batch(backend):
    logits, target = batch(3)
    tensors = {"teacher_logits": teacher(7, 13), "ensemble_weights": gate(7, 3)}
    module = EnsembleKDLoss(ensemble_ce_weight=0.5, backend=backend)
    expected = ensemble_kd_loss(logits, target, ensemble_ce_weight=0.5, backend=backend, **tensors).loss
    assert torch.equal(module(logits, target, **tensors), expected)
    matrix = others(3)
    module = EnsembleKDLoss(mixing=matrix, mixing_space="probabilities", backend=backend)
    assert module.options.mixing is matrix and not module.state_dict()
    expected = ensemble_kd_loss(logits, target, mixing=matrix, mixing_space="probabilities", backend=backend).loss
    assert torch.equal(module(logits, target), expected)


@pytest.mark.parametrize("name", ["hinton", "mutual", "one", "logits and a teacher mixed, T = 2.5"])
def test_gradcheck(name):
    # The targets are students held constant: finite differences would see detached ones move.
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


def test_options_hold_the_new_fields():
    assert KDOptions().ensemble_ce_weight == 0.0 and KDOptions().mixing is None and KDOptions().mixing_space == "logits"
    assert not KDOptions().ensemble_learns and KDOptions(ensemble_ce_weight=torch.zeros(())).ensemble_learns
