"""The loss of classifiers in chunks of rows: equal to the loss of the whole logits, with less memory."""

import sys

import pytest
import torch
import torch.nn.functional as F

from oekd_fast import ensemble_kd_loss, linear_ensemble_kd_loss

from ..conftest import needs_native
from ..support import oracle, peak_memory
from ..support.forkserver import call_in_new_process

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, CLASSES, SIZES = 23, 17, (8, 6, 4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def classifiers(dtype=torch.float64, rows=(ROWS,), biases=True):
    g = generator()
    hidden = [torch.randn(*rows, d, generator=g).to(dtype).requires_grad_() for d in SIZES]
    weights = [torch.randn(CLASSES, d, generator=g).to(dtype).requires_grad_() for d in SIZES]
    given = [torch.randn(CLASSES, generator=g).to(dtype).requires_grad_() if biases else None for _ in SIZES]
    target = torch.randint(CLASSES, rows, generator=g)
    target.view(-1)[::5] = -100
    return hidden, weights, given, target


def leaves_of(hidden, weights, biases):
    return [*hidden, *weights, *(bias for bias in biases if bias is not None)]


def materialised(hidden, weights, biases, target, **options):
    logits = [F.linear(*tensors) for tensors in zip(hidden, weights, biases, strict=True)]
    return ensemble_kd_loss(logits, target, class_dim=-1, **options)


def check_equal(output, grads, right, right_grads, tolerance=1e-13):
    for actual, expected in zip(output[:4], right[:4], strict=True):
        assert oracle.error(actual.detach(), expected.detach()) <= tolerance
    assert torch.equal(output.correct, right.correct)
    for actual, expected in zip(grads, right_grads, strict=True):
        assert actual.dtype == expected.dtype and oracle.error(actual, expected) <= tolerance


OPTIONS = {
    "default": {},
    "sum": {"reduction": "sum"},
    "smoothed": {"label_smoothing": 0.1, "temperature": 3.0},
    "weighted": {"weight": torch.rand(CLASSES, generator=generator(1), dtype=torch.float64) + 0.1},
    "weighted, smoothed, the ensemble learns": {
        "weight": torch.rand(CLASSES, generator=generator(1), dtype=torch.float64),
        "label_smoothing": 0.2,
        "ensemble_ce_weight": 0.5,
    },
    "num_items": {"num_items": 100},
    "num_items in a tensor": {"num_items": torch.tensor(100)},
    "weights of students": {"ensemble_weights": torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)},
    "numbers in tensors": {"temperature": torch.tensor(2.5), "kd_weight": torch.tensor([0.4])},
    "mixing": {"mixing": (1 - torch.eye(3, dtype=torch.float64)) / 2, "mixing_space": "probabilities"},
    "js": {"divergence": "js", "beta": 0.3},
    "decoupled": {"divergence": "decoupled", "beta": 2.0},
    "standardised": {"standardise_logits": True, "kd_weight": 9.0},
}


@pytest.mark.parametrize("chunk_rows", [1, 7, ROWS, None])
@pytest.mark.parametrize("name", OPTIONS)
def test_chunks_of_any_size_give_the_loss_of_the_whole_logits(name, chunk_rows):
    hidden, weights, biases, target = classifiers()
    leaves, options = leaves_of(hidden, weights, biases), OPTIONS[name]
    right = materialised(hidden, weights, biases, target, **options)
    output = linear_ensemble_kd_loss(hidden, weights, target, biases=biases, chunk_rows=chunk_rows, **options)
    check_equal(
        output, torch.autograd.grad(2.5 * output.loss, leaves), right, torch.autograd.grad(2.5 * right.loss, leaves)
    )


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_sequences_keep_their_shape(soft):
    hidden, weights, biases, target = classifiers(rows=(3, 5), biases=False)
    if soft:
        target = F.softmax(torch.randn(3, 5, CLASSES, generator=generator(2)), dim=-1)
    leaves = leaves_of(hidden, weights, biases)
    right = materialised(hidden, weights, biases, target)
    output = linear_ensemble_kd_loss(hidden, weights, target, chunk_rows=4)
    check_equal(output, torch.autograd.grad(output.loss, leaves), right, torch.autograd.grad(right.loss, leaves))


def test_a_teacher_is_a_classifier_too():
    hidden, weights, biases, target = classifiers()
    leaves = leaves_of(hidden, weights, biases)
    g = generator(3)
    teacher = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((ROWS, 9), (CLASSES, 9), (CLASSES,))]
    right = materialised(hidden, weights, biases, target, teacher_logits=F.linear(*teacher))
    given = dict(zip(("teacher_hidden", "teacher_weight", "teacher_bias"), teacher, strict=True))
    output = linear_ensemble_kd_loss(hidden, weights, target, biases=biases, chunk_rows=5, **given)
    check_equal(output, torch.autograd.grad(output.loss, leaves), right, torch.autograd.grad(right.loss, leaves))


def test_students_may_share_one_weight():
    hidden, (weight, *_), _, target = classifiers()
    hidden[1:] = [torch.randn(ROWS, d, generator=generator(d), dtype=torch.float64) for d in SIZES[1:]]
    shared = [weight[:, :d] for d in SIZES]
    right = materialised(hidden, shared, [None] * 3, target)
    output = linear_ensemble_kd_loss(hidden, shared, target, chunk_rows=4)
    leaves = [hidden[0], weight]
    check_equal(output, torch.autograd.grad(output.loss, leaves), right, torch.autograd.grad(right.loss, leaves))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_distillation_it_is_the_linear_cross_entropy_of_pytorch(smoothing):
    linear_cross_entropy = getattr(F, "linear_cross_entropy", None)
    if linear_cross_entropy is None:
        pytest.skip("torch.nn.functional.linear_cross_entropy is new in torch 2.13")
    hidden, weights, _, target = classifiers()
    output = linear_ensemble_kd_loss(
        hidden, weights, target, ce_weight=1.0, kd_weight=0.0, label_smoothing=smoothing, chunk_rows=6
    )
    for ce, h, w in zip(output.ce, hidden, weights, strict=True):
        assert ce.item() == pytest.approx(
            linear_cross_entropy(h, w, target, ignore_index=-100, label_smoothing=smoothing).item(), rel=1e-13
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_errors_are_not_larger_than_those_of_the_whole_logits(dtype):
    hidden, weights, biases, target = classifiers(dtype)
    leaves = leaves_of(hidden, weights, biases)
    wide = [[t.detach().double().requires_grad_() for t in tensors] for tensors in (hidden, weights, biases)]
    truth = torch.autograd.grad(materialised(*wide, target).loss, leaves_of(*wide))
    plain = torch.autograd.grad(materialised(hidden, weights, biases, target).loss, leaves)
    output = linear_ensemble_kd_loss(hidden, weights, target, biases=biases, chunk_rows=6)
    # Chunks round the gradients of logits relative to a larger number, and sums of chunks in another order.
    rounding = torch.finfo(dtype).eps
    for actual, other, right in zip(torch.autograd.grad(output.loss, leaves), plain, truth, strict=True):
        assert oracle.error(actual.double(), right) <= oracle.error(other.double(), right) + rounding


def test_gradients_in_float16_survive_a_mean_over_many_rows():
    rows, classes = 4096, 64
    hidden = [torch.randn(rows, 4, generator=generator()).half().requires_grad_()]
    weights = [torch.zeros(classes, 4).half().requires_grad_()]
    target = torch.randint(classes, (rows,), generator=generator())
    scale = 2.0**16
    loss = linear_ensemble_kd_loss(hidden, weights, target, chunk_rows=100).loss
    (grad,) = torch.autograd.grad(loss * scale, weights)
    wide = [weights[0].detach().double().requires_grad_()]
    right = linear_ensemble_kd_loss([hidden[0].detach().double()], wide, target).loss
    (truth,) = torch.autograd.grad(right * scale, wide)
    assert oracle.error(grad.double(), truth) < torch.finfo(torch.float16).eps


@pytest.mark.parametrize("rows", [0, ROWS])
def test_without_rows_that_count_loss_and_gradients_are_zero(rows):
    hidden, weights, biases, target = classifiers()
    hidden = [h[:rows].detach().requires_grad_() for h in hidden]
    target = torch.full_like(target[:rows], -100)
    leaves = leaves_of(hidden, weights, biases)
    output = linear_ensemble_kd_loss(hidden, weights, target, biases=biases, chunk_rows=6)
    assert output.loss == 0
    assert not any(grad.any() for grad in torch.autograd.grad(output.loss, leaves))


def test_only_the_gradients_that_are_needed_are_computed():
    hidden, weights, _, target = classifiers()
    frozen = [w.detach() for w in weights]
    output = linear_ensemble_kd_loss(hidden, frozen, target, chunk_rows=6)
    right = torch.autograd.grad(materialised(hidden, weights, [None] * 3, target).loss, hidden)
    for actual, expected in zip(torch.autograd.grad(output.loss, hidden), right, strict=True):
        assert oracle.error(actual, expected) <= 1e-13
    with torch.no_grad():
        assert not linear_ensemble_kd_loss(hidden, weights, target).loss.requires_grad


def test_a_second_backward_pass_is_refused():
    hidden, weights, _, target = classifiers()
    loss = linear_ensemble_kd_loss(hidden, weights, target).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="linear_ensemble_kd_loss: expected one backward pass, got a second one"):
        loss.backward()


def test_autocast_runs_the_classifiers_in_its_dtype():
    hidden, weights, biases, target = classifiers(torch.float32)
    leaves = leaves_of(hidden, weights, biases)
    with torch.autocast("cpu", torch.bfloat16):
        output = linear_ensemble_kd_loss(hidden, weights, target, biases=biases, chunk_rows=6)
        right = materialised(hidden, weights, biases, target)
    grads, right_grads = (torch.autograd.grad(result.loss, leaves) for result in (output, right))
    assert all(grad.dtype == torch.float32 for grad in grads)
    check_equal(output, grads, right, right_grads, tolerance=2 * torch.finfo(torch.bfloat16).eps)


def test_inside_a_compiled_function_it_is_a_graph_break():
    hidden, weights, _, target = classifiers()

    def loss(h):
        return 2 * linear_ensemble_kd_loss([t + 1 for t in h], weights, target, chunk_rows=6).loss

    actual = torch.compile(loss, backend="aot_eager")(hidden)
    assert oracle.error(actual.detach(), loss(hidden).detach()) <= 1e-14
    actual.backward()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@needs_native
@pytest.mark.parametrize("form", ["chunks", "whole"])
def test_peak_memory_is_that_of_gradients_and_one_chunk(form):
    rows, classes, size = 1024, 32000, 16
    grown = call_in_new_process(peak_memory.of_linear_loss, form, rows, classes, size)
    grads = 2 * (rows + classes) * size * 4 / 1e6
    whole = 2 * rows * classes * 4 / 1e6  # the logits of both students
    if form == "chunks":
        assert grads < grown < grads + (64 << 20) / 1e6 + 32  # and buffers of matrix products
    else:
        assert grown > whole  # the measurement sees the logits


H, W = torch.zeros(3, 4), torch.zeros(5, 4)
# name: (arguments changed, kind, message)
BAD = {
    "hidden a tensor": ({"hidden": H}, TypeError, "hidden: expected a sequence of tensors, one a student, got Tensor"),
    "no students": ({"hidden": [], "weights": []}, ValueError, "hidden: expected at least one student, got none"),
    "too few weights": ({"weights": [W]}, ValueError, "weights: expected 2, one a student as in hidden, got 1"),
    "too many biases": (
        {"biases": [None] * 3},
        ValueError,
        "biases: expected 2, one a student as in hidden, got 3",
    ),
    "other rows": ({"hidden": [H, H[:2]]}, ValueError, "hidden[1]: expected shape [3, D], got [2, 4]"),
    "other classes": ({"weights": [W, W[:4]]}, ValueError, "weights[1]: expected shape [5, 4], got [4, 4]"),
    "other size": ({"weights": [W, W[:, :3]]}, ValueError, "weights[1]: expected shape [5, 4], got [5, 3]"),
    "other dtype": (
        {"weights": [W, W.double()]},
        TypeError,
        "weights[1]: expected dtype torch.float32 as hidden[0], got torch.float64",
    ),
    "integers": (
        {"hidden": [H.long(), H.long()]},
        TypeError,
        "hidden[0]: expected float32, float16, bfloat16 or float64, got torch.int64",
    ),
    "other device": (
        {"hidden": [H, H.to("meta")]},
        ValueError,
        "hidden[1]: expected device cpu as hidden[0], got meta",
    ),
    "bias of other length": ({"biases": [None, W[:4, 0]]}, ValueError, "biases[1]: expected shape [5], got [4]"),
    "no reduction": (
        {"reduction": "none"},
        ValueError,
        "reduction: expected 'mean' or 'sum' for linear_ensemble_kd_loss, got 'none'",
    ),
    "attached ensemble": (
        {"detach_ensemble": False},
        ValueError,
        "detach_ensemble: expected True for linear_ensemble_kd_loss, got False",
    ),
    "learned temperature": (
        {"temperature": torch.tensor(2.0, requires_grad=True)},
        ValueError,
        "temperature: expected a tensor that requires no gradient, got requires_grad=True",
    ),
    "learned weights": (
        {"ensemble_weights": torch.ones(2, requires_grad=True)},
        ValueError,
        "ensemble_weights: expected a tensor that requires no gradient, got requires_grad=True",
    ),
    "a gate": (
        {"ensemble_weights": torch.ones(3, 2)},
        ValueError,
        "ensemble_weights: expected shape [2], one weight a student, got [3, 2]",
    ),
    "labels of other shape": (
        {"target": torch.zeros(2, dtype=torch.int64)},
        ValueError,
        "target: expected class indices of shape [3] with dtype torch.int64, for logits of shape [3, 5], got [2]",
    ),
    "label too large": (
        {"target": torch.tensor([0, 1, 5])},
        ValueError,
        "target: expected labels in [0, 5) or ignore_index -100, got 5 at row 2",
    ),
    "class weights too short": (
        {"weight": torch.ones(4)},
        ValueError,
        "weight: expected shape [5], one weight a class, got [4]",
    ),
    "chunk of no rows": ({"chunk_rows": 0}, ValueError, "chunk_rows: expected an int >= 1 or None, got 0"),
    "teacher without a weight": (
        {"teacher_hidden": H},
        ValueError,
        "teacher_weight: expected a tensor beside the other tensors of the teacher, got None",
    ),
    "teacher of other classes": (
        {"teacher_hidden": H, "teacher_weight": W[:4]},
        ValueError,
        "teacher_weight: expected shape [5, D], got [4, 4]",
    ),
    "unknown option": ({"temperture": 2.0}, TypeError, "unexpected keyword argument 'temperture'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused(name):
    changed, kind, message = BAD[name]
    given = {"hidden": [H, H], "weights": [W, W], "target": torch.zeros(3, dtype=torch.int64)} | changed
    with pytest.raises(kind) as raised:
        linear_ensemble_kd_loss(given.pop("hidden"), given.pop("weights"), given.pop("target"), **given)
    assert message in str(raised.value) and "\n" not in str(raised.value)
