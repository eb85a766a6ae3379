"""The ensemble loss on a GPU: its error against fp64 is at most that of naive PyTorch on this device + EPSILON."""

import pytest
import torch

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..support import oracle
from ..support.gpu_calls import DEVICE, FORMS, SIZES, by_autograd, problem, same, scalar, value_and_grad

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# Powers of two and other numbers; rows of a multiple of 16 bytes and others.
CLASSES = {2: 70, 10: 70, 100: 37, 1000: 9, 4096: 5, 5000: 5, 32000: 3, 128256: 2}  # classes: rows
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_loss_and_gradients(classes, dtype):
    logits, target = problem(CLASSES[classes], classes, dtype)
    target[0] = -100
    expected = oracle.Expected(logits, target)
    out = [torch.full_like(z, float("nan")) for z in logits]
    output, grads = ensemble_kd_value_and_grad(logits, target, out=out, backend="triton")
    assert all(a is b for a, b in zip(grads, out, strict=True))
    expected.check(output, grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_backward_with_an_upstream_gradient(classes, dtype):
    logits, target = problem(CLASSES[classes], classes, dtype)
    target[0] = -100
    leaves = [z.requires_grad_() for z in logits]
    output = ensemble_kd_loss(leaves, target, backend="triton")
    (scalar(2.5) * output.loss).backward()
    oracle.Expected([z.detach() for z in leaves], target, upstream=2.5).check(output, [z.grad for z in leaves])


@SIZES
@pytest.mark.parametrize(
    "options", [{"temperature": 2.5, "label_smoothing": 0.1, "reduction": "sum"}, {"ignore_index": 3}], ids=str
)
def test_options(size, options):
    logits, target = problem(min(size[0], 7), size[1], torch.float32)
    weights = torch.tensor([0.5, 0.0, 0.2, 0.2, 0.1], device=DEVICE)
    target[2] = 3
    expected = oracle.Expected(logits, target, ensemble_weights=weights, **options)
    output, grads = ensemble_kd_value_and_grad(
        logits, target, ensemble_weights=weights, grad_scale=scalar(1.0), backend="triton", **options
    )
    expected.check(output, grads)


@SIZES
@FORMS
def test_values_in_tensors_are_the_numbers_they_hold(size, form):
    logits, target = problem(*size)
    numbers = {"temperature": 2.5, "ce_weight": 0.25, "kd_weight": 0.5}  # no power of an exponential, exact in fp32
    expected = form(logits, target, **numbers)
    tensors = {name: scalar(number) for name, number in numbers.items()}
    same(form(logits, target, **tensors), expected)
    same(form(logits, target, **numbers | {"temperature": tensors["temperature"]}), expected)


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_small_integer_in_a_tensor_is_as_exact_as_naive_pytorch(size, dtype):
    logits, target = problem(min(size[0], 7), size[1], dtype)
    output, grads = ensemble_kd_value_and_grad(logits, target, temperature=scalar(2.0), backend="triton")
    oracle.Expected(logits, target).check(output, grads)


@SIZES
def test_an_invalid_scalar_makes_the_loss_nan_and_raises_with_validate(size):
    logits, target = problem(*size)
    output, _ = ensemble_kd_value_and_grad(logits, target, temperature=scalar(0.0), backend="triton")
    assert output.loss.isnan() and output.kd.isnan().all() and output.ce.isfinite().all()
    for form in (value_and_grad, by_autograd):
        with pytest.raises(ValueError, match="temperature: expected a finite number > 0, got 0.0"):
            form(logits, target, temperature=scalar(0.0), validate=True)
        with pytest.raises(ValueError, match="kd_weight: expected device cuda:0 as the logits, got cpu"):
            form(logits, target, kd_weight=torch.tensor(1.0))


@SIZES
def test_any_strides(size):
    logits, target = problem(5, size[1], torch.float32)
    expected = oracle.Expected(logits, target)
    columns = [z.t().contiguous().t() for z in logits]
    padded = [torch.cat([z, z[:, :3]], 1)[:, : size[1]] for z in logits]
    for strided in (columns, padded):
        output, grads = ensemble_kd_value_and_grad(strided, target, backend="triton")
        expected.check(output, grads)


@SIZES
@pytest.mark.parametrize("students", [1, 2, 8])
def test_other_numbers_of_students(size, students):
    logits, target = problem(5, size[1], torch.float32, students=students)
    output, grads = ensemble_kd_value_and_grad(logits, target, backend="triton")
    oracle.Expected(logits, target).check(output, grads)


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_through_the_ensemble_and_of_its_weights(size, dtype):
    logits, target = problem(min(size[0], 7), size[1], dtype)
    weights = torch.tensor([0.3, 0.1, 0.2, 0.3, 0.1], device=DEVICE)

    def gradients(z, w, y, backend):
        leaves, w = [x.detach().requires_grad_() for x in z], w.detach().requires_grad_()
        output = ensemble_kd_loss(leaves, y, ensemble_weights=w, detach_ensemble=False, backend=backend)
        upstream = torch.tensor(0.5, dtype=output.loss.dtype, device=output.loss.device)
        *grads, of_weights = torch.autograd.grad(output.loss, [*leaves, w], upstream)
        return oracle.stack(grads), oracle.stack([of_weights])

    truth = gradients([z.double().cpu() for z in logits], weights.double().cpu(), target.cpu(), "reference")
    ours = gradients(logits, weights, target, "triton")
    # Sums that nearly cancel, five numbers of them: one order of the classes may round well by luck.
    allowed = [0.0, 0.0]
    for seed in range(8):
        order = torch.randperm(size[1], generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        plain = gradients([z.float()[:, order] for z in logits], weights, order.argsort()[target], "reference")
        found = oracle.error(plain[0], truth[0][:, :, order.cpu().numpy()]), oracle.error(plain[1], truth[1])
        allowed = list(map(max, allowed, found))
    assert oracle.beyond_rounding(ours[0], truth[0], dtype) <= allowed[0] + oracle.EPSILON
    assert oracle.error(ours[1], truth[1]) <= allowed[1] + oracle.EPSILON


@SIZES
def test_labels_out_of_range_make_the_loss_nan_and_are_never_an_index(size):
    logits, target = problem(*size)
    good = value_and_grad(logits, target)
    bad = target.clone()
    bad[1], bad[3], bad[4] = size[1], -5, 1 << 40
    output, grads = ensemble_kd_value_and_grad(logits, bad, backend="triton")
    assert output.loss.isnan() and output.ce.isnan().all()
    assert torch.equal(output.kd, good[2]) and output.kd.isfinite().all()
    kept = torch.ones_like(target, dtype=torch.bool)
    kept[[1, 3, 4]] = False
    same([grad[kept] for grad in grads], [grad[kept] for grad in good[5:]])
    for form in (value_and_grad, by_autograd):
        with pytest.raises(ValueError, match="target: expected labels in"):
            form(logits, bad, validate=True)


@SIZES
def test_auto_takes_the_kernels(size):
    logits, target = problem(*size)
    same(ensemble_kd_loss(logits, target), ensemble_kd_loss(logits, target, backend="triton"))
