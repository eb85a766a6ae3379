"""The arguments that the loss shares with torch.nn.functional.cross_entropy: any shape, dtype and kind of labels, class
weights, reductions and the number of items; and the divergences."""

import math

import pytest
import torch
import torch.nn.functional as F

from oekd_fast import EnsembleKDLoss, ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import needs_native
from ..support.plain_loss import Expected

pytestmark = pytest.mark.usefixtures("one_thread")

# name: (shape of a student's logits, class dimension)
SHAPES = {
    "plain": ((9, 13), 1),
    "image": ((2, 7, 3, 5), 1),
    "sequence": ((3, 4, 11), -1),
    "classes first": ((6, 8), 0),
    "volume": ((2, 3, 2, 2, 2), 1),
    "many rows a plane": ((2, 19, 9, 67), 1),
}


@pytest.fixture(params=["reference", "auto"])
def backend(request):
    return request.param


@pytest.fixture(params=["reference", pytest.param("native", marks=needs_native)])
def one_backend(request):
    """A backend that computes every call; "auto" might take different ones for two calls that are compared."""
    return request.param


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_logits(shape, students=3, dtype=torch.float32):
    return [(3 * torch.randn(shape, generator=generator(j))).to(dtype) for j in range(students)]


def rows_of(shape, class_dim):
    rows = list(shape)
    classes = rows.pop(class_dim)
    return rows, classes


def indices(shape, class_dim, ignored=True):
    rows, classes = rows_of(shape, class_dim)
    target = torch.randint(classes, rows, generator=generator(99))
    if ignored:
        target.view(-1)[::4] = -100
    return target


def probabilities(shape, class_dim, dtype=torch.float32):
    return F.softmax(2 * torch.randn(shape, generator=generator(98)), dim=class_dim).to(dtype)


def class_weights(shape, class_dim):
    return torch.rand(rows_of(shape, class_dim)[1], generator=generator(97)) + 0.1


def check(logits, target, backend, orders=16, **arguments):
    """Compare loss and statistics, and the gradients by autograd and at once, with plain PyTorch."""
    plain = dict(arguments)
    if "divergence" in plain:
        plain["divergence_kind"] = plain.pop("divergence")
    upstream = None
    if arguments.get("reduction") == "none":
        upstream = torch.rand(ensemble_kd_loss(logits, target, **arguments).loss.shape, generator=generator(5))
    expected = Expected(logits, target, orders, upstream=upstream, **plain)
    leaves = [z.detach().requires_grad_() for z in logits]
    output = ensemble_kd_loss(leaves, target, backend=backend, **arguments)
    expected.check(output, torch.autograd.grad(output.loss, leaves, upstream))
    output, grads = ensemble_kd_value_and_grad(logits, target, backend=backend, grad_scale=upstream, **arguments)
    assert [grad.shape for grad in grads] == [z.shape for z in logits]
    expected.check(output, grads)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_kind_of_label_and_reduction(name, soft, reduction, backend):
    shape, class_dim = SHAPES[name]
    target = probabilities(shape, class_dim) if soft else indices(shape, class_dim)
    check(random_logits(shape), target, backend, class_dim=class_dim, reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("name", ["plain", "image"])
def test_class_weights_mean_what_they_mean_in_cross_entropy(name, soft, smoothing, reduction, backend):
    shape, class_dim = SHAPES[name]
    target = probabilities(shape, class_dim) if soft else indices(shape, class_dim)
    arguments = {"weight": class_weights(shape, class_dim), "label_smoothing": smoothing, "ensemble_ce_weight": 0.5}
    check(random_logits(shape), target, backend, class_dim=class_dim, reduction=reduction, **arguments)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_num_items_replaces_every_divisor(soft, as_tensor, backend):
    shape, class_dim = SHAPES["sequence"]
    target = probabilities(shape, class_dim) if soft else indices(shape, class_dim)
    weight = class_weights(shape, class_dim)
    logits = random_logits(shape)
    expected = Expected(logits, target, class_dim=class_dim, weight=weight, num_items=30)
    num_items = torch.tensor(30) if as_tensor else 30
    expected.check(
        *ensemble_kd_value_and_grad(
            logits, target, backend=backend, class_dim=class_dim, weight=weight, num_items=num_items
        )
    )


def test_losses_of_micro_batches_over_num_items_add_up_to_the_loss_of_the_batch(backend):
    logits = [z.double() for z in random_logits((12, 7))]
    target = indices((12, 7), 1)
    whole = ensemble_kd_loss(logits, target, backend=backend).loss
    counted = int((target != -100).sum())
    parts = [slice(0, 2), slice(2, 9), slice(9, 12)]
    losses = [ensemble_kd_loss([z[p] for z in logits], target[p], num_items=counted, backend=backend) for p in parts]
    assert sum(part.loss for part in losses).item() == pytest.approx(whole.item(), rel=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 2.5])
@pytest.mark.parametrize("kind, beta", [("reverse", 0.5), ("js", 0.5), ("js", 0.1), ("js", 0.9)])
def test_divergences(kind, beta, temperature, backend):
    target = indices((9, 13), 1)
    arguments = {"divergence": kind, "beta": beta, "temperature": temperature, "kd_weight": 1.0, "ce_weight": 0.5}
    check(random_logits((9, 13)), target, backend, **arguments)


def test_the_js_divergence_of_excluded_classes_is_that_of_probabilities_of_zero(backend):
    logits = random_logits((4, 6), students=2)
    teacher = torch.randn(4, 6, generator=generator(8))
    teacher[:, 4:] = -math.inf
    for z in logits:
        z[:, :1] = -math.inf
    output, grads = ensemble_kd_value_and_grad(
        logits, None, teacher_logits=teacher, divergence="js", ce_weight=0.0, backend=backend
    )
    t, q = (F.softmax(z.double() / 2, dim=1) for z in (teacher, logits[0]))
    m = (t + q) / 2
    expected = 4 * 0.5 * (torch.xlogy(t, t / m).nansum(1) + torch.xlogy(q, q / m).nansum(1)).mean()
    assert output.kd[0].item() == pytest.approx(expected.item(), rel=1e-6)
    assert all(grad.isfinite().all() for grad in grads)


def test_the_reverse_divergence_from_a_target_that_excludes_a_class_is_infinite(backend):
    teacher = torch.zeros(2, 3)
    teacher[:, 0] = -math.inf
    output = ensemble_kd_loss(
        [torch.zeros(2, 3)], None, teacher_logits=teacher, divergence="reverse", ce_weight=0.0, backend=backend
    )
    assert output.kd.item() == math.inf


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_indices_of_any_integer_dtype_give_the_same_bits(dtype, one_backend):
    logits, target = random_logits((8, 5)), torch.tensor([0, 4, 3, 100, 2, 2, 1, 100])
    right = ensemble_kd_value_and_grad(logits, target, ignore_index=100, backend=one_backend)
    same_bits(ensemble_kd_value_and_grad(logits, target.to(dtype), ignore_index=100, backend=one_backend), right)


def test_an_ignore_index_that_a_narrow_dtype_cannot_hold_ignores_nothing(one_backend):
    logits, target = random_logits((3, 200)), torch.tensor([156, 1, 2], dtype=torch.uint8)  # 156 is -100 modulo 256
    assert ensemble_kd_loss(logits, target, backend=one_backend).ce.tolist() == (
        ensemble_kd_loss(logits, target.long(), backend=one_backend).ce.tolist()
    )


def same_bits(actual, expected):
    for a, b in zip(actual[0], expected[0], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(actual[1], expected[1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_hot_probabilities_equal_indices(dtype, weighted, smoothing, one_backend):
    logits, target = random_logits((9, 13)), indices((9, 13), 1, ignored=False)
    logits[0][2, 5] = -math.inf  # its label is 0 unless labels are smoothed
    target[2] = 1
    arguments = {"label_smoothing": smoothing, "backend": one_backend}
    if weighted:  # with reduction "sum", since the mean over weighted indices has another divisor
        arguments |= {"weight": class_weights((9, 13), 1), "reduction": "sum"}
    hard = ensemble_kd_value_and_grad(logits, target, **arguments)
    soft = ensemble_kd_value_and_grad(logits, F.one_hot(target, 13).to(dtype), **arguments)
    same_bits(soft, hard)


def test_correct_counts_compare_with_the_first_most_probable_class(backend):
    logits = [torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [0.0, 5.0, 0.0]])]
    target = torch.tensor([[0.1, 0.2, 0.7], [0.4, 0.4, 0.2], [0.5, 0.25, 0.25]])
    output = ensemble_kd_loss(logits, target, weight=torch.tensor([1.0, 1.0, 0.1]), backend=backend)
    assert output.correct.tolist() == [2, 2]


def test_ignored_rows_have_loss_and_gradient_zero_without_a_reduction(backend):
    logits, target = random_logits((8, 5)), indices((8, 5), 1)
    logits[0][target == -100] = math.nan
    output, grads = ensemble_kd_value_and_grad(logits, target, reduction="none", backend=backend)
    assert output.loss.shape == (8,) and output.ce.shape == output.kd.shape == (3, 8)
    ignored = target == -100
    assert not output.loss[ignored].any() and (output.loss[~ignored] > 0).all()
    assert not output.ce[:, ignored].any() and not any(grad[ignored].any() for grad in grads)


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_labels_of_total_weight_zero_give_no_cross_entropy(backend, smoothing):
    logits, target = random_logits((4, 3)), torch.zeros(4, dtype=torch.int64)
    weight = torch.tensor([0.0, 1.0, 1.0])
    output, grads = ensemble_kd_value_and_grad(
        logits, target, weight=weight, kd_weight=0.0, label_smoothing=smoothing, backend=backend
    )
    assert output.loss == 0 and not output.ce.any() and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "cropped", "expanded rows", "stacked"])
def test_strides(layout, backend):
    shape, class_dim = (2, 5, 4, 6), 1
    logits, target = random_logits(shape), indices(shape, class_dim)
    right = ensemble_kd_value_and_grad(logits, target, backend="reference")
    if layout == "channels_last":
        logits = [z.to(memory_format=torch.channels_last) for z in logits]
    elif layout == "transposed":
        logits = [z.transpose(2, 3).contiguous().transpose(2, 3) for z in logits]
    elif layout == "cropped":
        logits = [F.pad(z, (1, 2, 1, 0))[:, :, 1:, 1:-2] for z in logits]
    elif layout == "expanded rows":
        logits = [z[:, :, :1].expand(shape) for z in logits]
        right = ensemble_kd_value_and_grad([z.contiguous() for z in logits], target, backend="reference")
    else:
        logits = torch.stack(logits)
    output, grads = ensemble_kd_value_and_grad(logits, target, backend=backend)
    for actual, expected in zip((*output[:4], *grads), (*right[0][:4], *right[1]), strict=True):
        torch.testing.assert_close(actual, expected, rtol=3e-6, atol=1e-8)
    assert torch.equal(output.correct, right[0].correct)


def test_teachers_gates_and_buffers_have_the_shape_of_the_logits(backend):
    shape, class_dim = (2, 3, 7), -1
    logits, target = random_logits(shape), indices(shape, class_dim)
    teachers = torch.randn(2, *shape, generator=generator(3))
    mixing = torch.rand(3, 5, generator=generator(4))
    gate = F.softmax(torch.randn(2, 3, 3, generator=generator(5)), dim=-1)
    rows = [z.flatten(0, 1) for z in logits]
    for tensors, flat in (
        ({"teacher_logits": teachers, "mixing": mixing}, {"teacher_logits": teachers.flatten(1, 2), "mixing": mixing}),
        ({"ensemble_weights": gate}, {"ensemble_weights": gate.flatten(0, 1)}),
    ):
        out = [torch.full(shape, math.nan) for _ in logits]
        weights_grad = torch.full((2, 3, 3), math.nan) if "ensemble_weights" in tensors else None
        flat_grad = None if weights_grad is None else torch.zeros(6, 3)
        output, grads = ensemble_kd_value_and_grad(
            logits,
            target,
            class_dim=-1,
            ensemble_ce_weight=0.5,
            out=out,
            weights_grad=weights_grad,
            backend=backend,
            **tensors,
        )
        right = ensemble_kd_value_and_grad(
            rows, target.flatten(), ensemble_ce_weight=0.5, weights_grad=flat_grad, backend=backend, **flat
        )
        assert all(a is b for a, b in zip(grads, out, strict=True))
        same_bits((output, [grad.flatten(0, 1) for grad in grads]), right)
        if weights_grad is not None:
            assert torch.equal(weights_grad.flatten(0, 1), flat_grad) and flat_grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_other_dtypes(dtype, soft, backend):
    shape = (2, 7, 3, 5)
    target = probabilities(shape, 1, torch.bfloat16) if soft else indices(shape, 1)
    check(random_logits(shape, dtype=dtype), target, backend, weight=class_weights(shape, 1))


def test_a_gradient_of_probabilities_comes_from_the_reference():
    logits, target = random_logits((4, 5)), probabilities((4, 5), 1).requires_grad_()
    loss = ensemble_kd_loss(logits, target, kd_weight=0.0, ce_weight=1.0).loss
    (grad,) = torch.autograd.grad(loss, target)
    right = torch.autograd.grad(sum(F.cross_entropy(z, target) for z in logits), target)[0]
    torch.testing.assert_close(grad, right)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_gradcheck_without_a_reduction(soft):
    logits = [z.double().requires_grad_() for z in random_logits((2, 4, 3))]
    target = probabilities((2, 4, 3), 1).double() if soft else indices((2, 4, 3), 1)
    weight = class_weights((2, 4, 3), 1).double()
    teacher = 2 * logits[0].detach()  # a copy, since gradcheck changes its inputs

    def loss(*z):
        options = {"weight": weight, "label_smoothing": 0.1, "reduction": "none", "ensemble_ce_weight": 0.3}
        return ensemble_kd_loss(z, target, teacher_logits=teacher, **options).loss

    assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize(
    "backend, arguments",
    [
        ("reference", {"reduction": "none"}),
        *(pytest.param("auto", options) for options in ({}, {"reduction": "none"}, {"divergence": "js"})),
    ],
    ids=str,
)
def test_images_of_labels_under_torch_compile(arguments, backend):
    shape = (2, 7, 3, 5)
    logits, target = [z.requires_grad_() for z in random_logits(shape)], indices(shape, 1)
    weight = class_weights(shape, 1)

    def loss(z, y):
        return ensemble_kd_loss(z, y, weight=weight, backend=backend, **arguments).loss

    expected = loss(logits, target)
    actual = torch.compile(loss, fullgraph=True, backend="aot_eager")(logits, target)
    torch.testing.assert_close(actual, expected)
    upstream = torch.rand(expected.shape, generator=generator(5))
    for a, b in zip(*(torch.autograd.grad(x, logits, upstream) for x in (actual, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_module_takes_what_the_function_takes():
    shape = (3, 4, 11)
    logits, target = random_logits(shape), indices(shape, -1)
    module = EnsembleKDLoss(class_dim=-1, weight=class_weights(shape, -1), divergence="js", beta=0.3)
    right = ensemble_kd_loss(
        logits, target, class_dim=-1, weight=class_weights(shape, -1), divergence="js", beta=0.3, num_items=20
    )
    assert torch.equal(module(logits, target, 20), right.loss)
    assert torch.equal(module(logits, target, num_items_in_batch=torch.tensor(20)), right.loss)
