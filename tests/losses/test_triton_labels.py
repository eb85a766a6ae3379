"""The arguments of cross_entropy with backend="triton": by autograd, under torch.compile, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.losses import backends
from oekd_fast.losses import ensemble_kd as loss_functions
from oekd_fast.losses.calls import EnsembleKDCall, KDOptions

from ..conftest import BACKENDS, op_kwargs
from ..support.plain_loss import Expected

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif("triton" not in BACKENDS, reason="needs Triton's interpreter"),
]
SHAPE, CLASSES = (2, 7, 3, 2), 7  # images of labels
BACKEND = pytest.mark.parametrize("backend", ["triton"])  # marks a test as one of the interpreter


def logits(shape=SHAPE, dtype=torch.float32):
    return [(3 * torch.randn(shape, generator=torch.Generator().manual_seed(j))).to(dtype) for j in range(2)]


def labels(shape=SHAPE, dtype=torch.int64):
    rows = (shape[0], *shape[2:])
    target = torch.randint(CLASSES, rows, generator=torch.Generator().manual_seed(9)).to(dtype)
    target.view(-1)[1::4] = -100
    return target


WEIGHT = torch.linspace(0.0, 2.0, CLASSES)


@BACKEND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arguments", [{}, {"reduction": "none"}, {"num_items": 20}], ids=str)
@pytest.mark.parametrize("shape", [SHAPE, (9, CLASSES)], ids=str)
def test_losses_by_autograd(shape, arguments, dtype, backend):
    z, target = [x.requires_grad_() for x in logits(shape, dtype)], labels(shape, torch.int32)
    arguments = arguments | {"weight": WEIGHT, "label_smoothing": 0.1}
    output = ensemble_kd_loss(z, target, backend=backend, **arguments)
    upstream = torch.rand(output.loss.shape, generator=torch.Generator().manual_seed(8)) + 0.5
    grads = torch.autograd.grad(output.loss, z, upstream)
    Expected([x.detach() for x in z], target, upstream=upstream, **arguments).check(output, grads)


@BACKEND
def test_an_expanded_upstream_gradient_of_rows(backend):
    z = [x.requires_grad_() for x in logits((9, CLASSES))]
    loss = ensemble_kd_loss(z, labels((9, CLASSES)), reduction="none", backend=backend).loss
    upstream = torch.tensor(0.5).expand(9)
    right = torch.autograd.grad(loss, z, upstream.contiguous(), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(loss, z, upstream), right, strict=True))


@BACKEND
@pytest.mark.parametrize("rows", [False, True], ids=["images", "rows"])
def test_the_differentiable_form_is_one_graph(rows, backend, monkeypatch):
    # On CUDA the backend is chosen without loading the kernels, and the dispatcher calls the ops.
    monkeypatch.setattr(loss_functions, "choose_backend", lambda *_: backends.TRITON)
    monkeypatch.setattr(backends.TritonBackend, "ops", lambda *_: torch.ops.oekd_fast)
    # Statistics of rows are kept for images too. The ops of the other form are those of the CPU kernels here.
    monkeypatch.setattr(backends, "covers_objectives", lambda *_: False)
    shape = (9, CLASSES) if rows else SHAPE
    target, num_items = labels(shape), torch.tensor(11)
    upstream = torch.rand(target.shape, generator=torch.Generator().manual_seed(8))

    def step(z):
        each = ensemble_kd_loss(z, target, weight=WEIGHT, reduction="none").loss
        return (each * upstream).sum() + ensemble_kd_loss(z, target, weight=WEIGHT, num_items=num_items).loss

    def run(function):
        z = [x.requires_grad_() for x in logits(shape)]
        loss = function(z)
        return loss.detach(), *torch.autograd.grad(loss, z)

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=False)
    for came, right in zip(run(compiled), run(step), strict=True):
        torch.testing.assert_close(came, right)
    torch.compiler.reset()


@BACKEND
@pytest.mark.parametrize("per_row", [False, True])
def test_ops_keep_to_their_schemas(per_row, backend):
    z, target = [x.flatten(2) for x in logits()], labels().flatten(1)
    kwargs = op_kwargs(class_weights=WEIGHT, reduction="sum" if per_row else "mean", per_row=per_row)
    value = torch.ops.oekd_fast.ensemble_kd_value_and_rows
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(value.default, (z, target), kwargs, test_utils=checks)
    *_, row_statistics, counted = value(z, target, **kwargs)
    assert counted.tolist() == [9.0, WEIGHT[target[target != -100]].sum()]
    kwargs |= {
        "row_statistics": row_statistics,
        "counted": counted,
        "grad_scale": torch.ones(12 if per_row else ()),
        "weights_grad": False,
        "out": [torch.zeros_like(x) for x in z],
    }
    torch.library.opcheck(torch.ops.oekd_fast.ensemble_kd_grad_out.default, (z, target), kwargs, test_utils=checks)


def call(target=None, classes=CLASSES, images=True, teacher=False, **options):
    shape = (2, classes, 3) if images else (2, classes)
    z = [torch.zeros(shape).requires_grad_() for _ in range(2)]
    if target is None:
        target = torch.zeros((2, 3) if images else 2, dtype=torch.int64)
    return EnsembleKDCall.of(z, target, KDOptions(**options), teacher_logits=torch.zeros(shape) if teacher else None)


def test_statistics_of_rows_are_kept_where_rows_are_long_or_plain():
    triton = backends.TRITON
    assert triton.keeps_rows(call(images=False)) and triton.keeps_rows(call(classes=32_000))
    assert triton.keeps_rows(call(images=False, weight=WEIGHT, reduction="none"))
    assert not triton.keeps_rows(call())
    assert not triton.keeps_rows(call(images=False, divergence="js"))
    assert not triton.keeps_rows(call(torch.full((2, CLASSES), 1 / CLASSES), images=False))


def test_calls_that_no_kernel_supports():
    triton = backends.TRITON
    soft = torch.full((2, 32_000), 1 / 32_000)
    assert triton.unsupported(call(soft, 32_000, images=False)) == (
        "expected a row of all students and teachers to fit the registers with probabilities as target, "
        "got 2 students, 0 teachers and C = 32000"
    )
    assert "with divergence, got" in triton.unsupported(call(classes=32_000, divergence="reverse"))
    assert triton.unsupported(call(divergence="js", detach_ensemble=False)) == (
        "expected detach_ensemble=True beside divergence='js', got False"
    )
    mixed = {"mixing": torch.full((2, 2), 0.5), "mixing_space": "probabilities"}
    assert triton.unsupported(call(divergence="js", **mixed)) == (
        "expected mixing_space='logits' beside divergence='js', got 'probabilities'"
    )
    many = torch.zeros(1, dtype=torch.uint8).expand(1 << 12, 1 << 12)
    one = EnsembleKDCall.of([torch.zeros(1).expand(1 << 12, 2, 1 << 12)], many, KDOptions())
    assert triton.unsupported(one) == ("expected fewer than 2^24 rows, since they are counted in float32, got 16777216")
    assert triton.unsupported(call(divergence="js", teacher=True, detach_ensemble=False)) is None


@BACKEND
def test_one_hot_probabilities_equal_indices(backend):
    z, target = logits(), labels().clamp(min=0)
    soft = F.one_hot(target, CLASSES).movedim(-1, 1).to(torch.float16)
    came, right = (ensemble_kd_value_and_grad(z, y, label_smoothing=0.1, backend=backend) for y in (soft, target))
    assert all(torch.equal(a, b) for a, b in zip((*came[0], *came[1]), (*right[0], *right[1]), strict=True))
