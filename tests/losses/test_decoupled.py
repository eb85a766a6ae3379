"""The decoupled divergence: the label's class against the others, and the others alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import BACKENDS, IMPLEMENTATIONS, ISAS, batch, needs_native
from ..support.objective_calls import by_autograd
from ..support.plain_loss import Expected

pytestmark = pytest.mark.usefixtures("one_thread")
STUDENTS, ROWS, CLASSES = 3, 9, 13
needs_interpreter = pytest.mark.skipif("triton" not in BACKENDS, reason="needs Triton's interpreter")
NAMES = [name for name in IMPLEMENTATIONS if name != "triton"]
each_implementation = pytest.mark.parametrize("implementation", NAMES)
KD = {"divergence": "decoupled", "ce_weight": 0.0, "kd_weight": 1.0}
OPTIONS = {
    "ensemble": {"beta": 2.0},
    "teacher, T = 4": {"beta": 8.0, "temperature": 4.0, "teacher_logits": 6 * torch.randn(ROWS, CLASSES)},
    "a loss a row": {"beta": 1.0, "reduction": "none"},
    "standardised logits": {"beta": 2.0, "standardise_logits": True},
    "without the other classes": {"beta": 0.0},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("name", OPTIONS)
@each_implementation
def test_the_published_formula(implementation, name, dtype):
    if dtype == torch.float64 and implementation != "reference":
        pytest.skip("the native kernel does not support fp64")
    logits, target = batch(STUDENTS, ROWS, CLASSES, dtype=dtype)
    target[3] = -100
    options = {"kd_weight": 1.0, **OPTIONS[name]}
    expected = Expected(logits, target, orders=64, divergence_kind="decoupled", **options)
    expected.check(*IMPLEMENTATIONS[implementation](logits, target, divergence="decoupled", **options))


@pytest.mark.parametrize("classes", [1023, 1025, 2100])
@each_implementation
def test_rows_of_several_tiles(implementation, classes):
    logits, target = batch(2, 4, classes)
    target[0] = classes - 1  # alone in its tile if there are 1025 classes
    given = {"label_smoothing": 0.1, "weight": torch.rand(classes) + 0.1, "ensemble_ce_weight": 0.5, "beta": 2.0}
    for options in ({"kd_weight": 1.0}, {"kd_weight": 1.0, "standardise_logits": True}):
        expected = Expected(logits, target, orders=64, divergence_kind="decoupled", **given, **options)
        expected.check(*IMPLEMENTATIONS[implementation](logits, target, divergence="decoupled", **given, **options))


def test_images_and_an_upstream_gradient():
    logits = [torch.randn(2, 7, 3, 5, dtype=torch.float64) for _ in range(STUDENTS)]
    target = torch.randint(7, (2, 3, 5))
    target[0, 0] = -100
    expected = Expected(logits, target, divergence_kind="decoupled", upstream=torch.tensor(2.5), beta=2.0)
    expected.check(*by_autograd(logits, target, {}, "auto", upstream=2.5, divergence="decoupled", beta=2.0)[:2])


def test_the_sum_of_both_parts_with_the_weight_of_the_others_is_the_forward_divergence():
    """KL = TCKD + (1 - p_y) NCKD, row by row."""
    logits, target = batch(1, ROWS, CLASSES, dtype=torch.float64)
    teacher = 3 * torch.randn(ROWS, CLASSES, dtype=torch.float64)
    given = {"teacher_logits": teacher, "reduction": "none", "ce_weight": 0.0}
    first = ensemble_kd_loss(logits, target, divergence="decoupled", beta=0.0, **given).kd
    both = ensemble_kd_loss(logits, target, divergence="decoupled", beta=1.0, **given).kd
    others = 1 - F.softmax(teacher / 2, dim=1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(first + others * (both - first), ensemble_kd_loss(logits, target, **given).kd)


def test_gradients_are_differences_of_probabilities():
    """T (s_y - t_y) for the label's class; for others, T (beta (q_i - r_i) - (s_y - t_y) q_i)."""
    logits, target = batch(1, ROWS, CLASSES, dtype=torch.float64)
    teacher = 3 * torch.randn(ROWS, CLASSES, dtype=torch.float64)
    _, (grad,) = ensemble_kd_value_and_grad(
        logits, target, teacher_logits=teacher, beta=2.0, reduction="sum", temperature=4.0, **KD
    )
    is_label = F.one_hot(target, CLASSES).bool()
    s, t = ((z / 4).softmax(dim=1) for z in (logits[0], teacher))
    q, r = (p.masked_fill(is_label, 0.0) / p.masked_fill(is_label, 0.0).sum(dim=1, keepdim=True) for p in (s, t))
    gap = (s - t)[is_label][:, None]
    torch.testing.assert_close(grad, 4 * torch.where(is_label, gap, 2.0 * (q - r) - gap * q))


@pytest.mark.parametrize("far", [20.0, 90.0, 1e4])
@each_implementation
def test_other_classes_are_compared_where_the_label_is_nearly_certain(implementation, far):
    logits, target = batch(2, ROWS, CLASSES)
    other = batch(1, ROWS, CLASSES, seed=5)[0][0]
    for z in (*logits, other):
        z.scatter_(1, target[:, None], far)
    given = {"teacher_logits": other, "beta": 2.0, "temperature": 1.0, **KD, "ce_weight": 0.7}
    output, grads = IMPLEMENTATIONS[implementation](logits, target, **given)
    is_label = F.one_hot(target, CLASSES).bool()
    q, r = (z.double()[~is_label].view(ROWS, -1).log_softmax(dim=1) for z in (logits[0], other))
    right = 2 * F.kl_div(q, r, reduction="batchmean", log_target=True)
    assert output.kd[0].item() == pytest.approx(right.item(), rel=1e-5)
    torch.testing.assert_close(
        grads[0][~is_label].view(ROWS, -1).double(), 2 * (q.exp() - r.exp()) / ROWS, rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("hidden", [0, 1, CLASSES - 1], ids=["one class", "a masked class", "all others masked"])
@each_implementation
def test_classes_that_are_missing(implementation, hidden):
    logits, target = batch(2, ROWS, CLASSES if hidden else 1)
    target.zero_()
    if hidden:
        for z in logits:
            z[:, CLASSES - hidden :] = -math.inf
    output, grads = IMPLEMENTATIONS[implementation](logits, target, beta=2.0, **KD)
    assert output.kd.isfinite().all() and all(grad.isfinite().all() for grad in grads)
    if hidden != 1:
        assert not output.kd.any() and not any(grad.any() for grad in grads)
    else:
        right = ensemble_kd_loss([z[:, :-1] for z in logits], target, beta=2.0, **KD)
        torch.testing.assert_close(output.kd, right.kd)


def test_targets_of_a_mixture():
    logits, target = batch(STUDENTS, ROWS, CLASSES, dtype=torch.float64)
    mixing = (1 - torch.eye(STUDENTS, dtype=torch.float64)) / (STUDENTS - 1)
    given = {"mixing": mixing, "beta": 2.0, **KD}
    pairs = ensemble_kd_loss(logits, target, mixing_space="probabilities", **given).kd
    for j in range(STUDENTS):
        others = [logits[i] for i in range(STUDENTS) if i != j]
        right = [ensemble_kd_loss([logits[j]], target, teacher_logits=z, beta=2.0, **KD).kd[0] for z in others]
        torch.testing.assert_close(pairs[j], torch.stack(right).mean())


def test_the_reference_is_differentiable_twice_and_through_an_attached_target():
    z = [torch.randn(2, 4, dtype=torch.float64).requires_grad_() for _ in range(2)]

    def loss(*logits):
        given = {"detach_ensemble": False, "backend": "reference", "beta": 2.0}
        return ensemble_kd_loss(logits, torch.tensor([1, 3]), **given, **KD).loss

    assert torch.autograd.gradcheck(loss, z, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, z, fast_mode=True)


@pytest.mark.parametrize("function", [ensemble_kd_loss, ensemble_kd_value_and_grad])
def test_labels_are_class_indices(function):
    logits, _ = batch(2, 4, 3)
    with pytest.raises(ValueError, match="^target: expected class indices with divergence='decoupled', got None$"):
        function(logits, None, **KD)
    with pytest.raises(ValueError, match="^target: expected class indices with .*, got dtype torch.float32$"):
        function(logits, torch.full((4, 3), 1 / 3), **KD)


@needs_interpreter
def test_triton_refuses_it_by_name():
    logits, target = batch(2, 4, 3)
    text = "backend 'triton': expected divergence 'forward', 'reverse' or 'js', got 'decoupled'; "
    with pytest.raises(ValueError, match=text + ".*backend='reference': supports this call"):
        ensemble_kd_loss(logits, target, backend="triton", **KD)


@needs_native
@pytest.mark.parametrize("target", [None, torch.full((4, 3), 1 / 3)], ids=["None", "probabilities"])
def test_the_op_checks_its_labels(target):
    with pytest.raises(ValueError, match="^target: expected class indices with the decoupled divergence, got [Np]"):
        IMPLEMENTATIONS[f"native-{ISAS[0]}"](batch(2, 4, 3)[0], target, **KD)
