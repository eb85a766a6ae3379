"""The arguments of cross_entropy on a GPU, against plain PyTorch on the CPU."""

import pytest
import torch
import torch.nn.functional as F

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..support.gpu_calls import DEVICE
from ..support.plain_loss import Expected

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SHAPES = {
    "rows": ((70, 100), 1),
    "image": ((2, 19, 9, 16), 1),
    "image of odd sides": ((2, 150, 7, 7), 1),
    "sequence": ((2, 5, 1000), -1),
    "long rows": ((2, 3, 32_000), -1),
    "long rows apart": ((2, 32_000, 3), 1),
}


def case(name, soft, dtype):
    """Logits, labels and class weights on the CPU, and the class dimension."""
    shape, class_dim = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    logits = [(3 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(3)]
    rows = list(shape)
    classes = rows.pop(class_dim)
    target = torch.randint(classes, rows, generator=generator, dtype=torch.int32)
    target.view(-1)[1::4] = -100
    if soft:
        target = F.softmax(2 * torch.randn(shape, generator=generator), dim=class_dim)
    return logits, target, torch.rand(classes, generator=generator) + 0.1, class_dim


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "name, soft",
    [*((name, False) for name in SHAPES), *((name, True) for name in ("rows", "image", "sequence"))],
)
def test_class_weights_and_smoothed_labels(name, soft, reduction, dtype):
    logits, target, weight, class_dim = case(name, soft, dtype)
    options = {"class_dim": class_dim, "reduction": reduction, "label_smoothing": 0.1}
    leaves = [z.to(DEVICE).requires_grad_() for z in logits]
    output = ensemble_kd_loss(leaves, target.to(DEVICE), weight=weight.to(DEVICE), backend="triton", **options)
    upstream = torch.rand(output.loss.shape, generator=torch.Generator().manual_seed(1)) + 0.5
    expected = Expected(logits, target, weight=weight, upstream=upstream, **options)
    grads = torch.autograd.grad(output.loss, leaves, upstream.to(DEVICE))
    expected.check(type(output)(*(x.cpu() for x in output)), [grad.cpu() for grad in grads])


@pytest.mark.parametrize("name", ["rows", "image", "sequence"])
@pytest.mark.parametrize("kind, beta", [("reverse", 0.5), ("js", 0.3)])
def test_divergences(kind, beta, name):
    logits, target, _, class_dim = case(name, False, torch.float32)
    expected = Expected(logits, target, class_dim=class_dim, divergence_kind=kind, beta=beta, num_items=50)
    output, grads = ensemble_kd_value_and_grad(
        [z.to(DEVICE) for z in logits],
        target.to(DEVICE),
        class_dim=class_dim,
        divergence=kind,
        beta=beta,
        num_items=torch.tensor(50, device=DEVICE),
        backend="triton",
    )
    expected.check(type(output)(*(x.cpu() for x in output)), [grad.cpu() for grad in grads])


@pytest.mark.parametrize("name", ["rows", "image"])
def test_one_hot_probabilities_give_the_bits_of_indices(name):
    logits, target, weight, class_dim = case(name, False, torch.float32)
    target = target.clamp(min=0).long().to(DEVICE)
    soft = F.one_hot(target, len(weight)).movedim(-1, class_dim).float()
    options = {"weight": weight.to(DEVICE), "label_smoothing": 0.1, "reduction": "sum", "class_dim": class_dim}
    given = [z.to(DEVICE) for z in logits]
    came, right = (ensemble_kd_value_and_grad(given, y, backend="triton", **options) for y in (soft, target))
    assert all(torch.equal(a, b) for a, b in zip((*came[0], *came[1]), (*right[0], *right[1]), strict=True))
