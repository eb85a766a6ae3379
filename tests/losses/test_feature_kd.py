"""The intermediate loss: adapters and mean squared error to the pseudo teacher's maps, in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oekd_fast import FeatureKDLoss, feature_kd_loss

CHANNELS = (8, 6, 5, 3)  # the pseudo teacher's, then three students'


def block(size=4, rows=2, seed=0, dtype=torch.float32):
    """Return student maps, teacher map, weights and biases of one block; all require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    teacher, *students = CHANNELS
    maps = [leaf(rows, channels, size, size) for channels in students]
    weights = [leaf(teacher, channels) for channels in students]
    return maps, leaf(rows, teacher, size, size), weights, [leaf(teacher) for _ in students]


def explicit(maps, teacher, weights, biases):
    """The loss as a sum over pixels, without a convolution."""
    total = 0.0
    for student, weight, bias in zip(maps, weights, biases, strict=True):
        adapted = torch.einsum("oc,bchw->bohw", weight.flatten(1), student) + bias[:, None, None]
        total = total + ((adapted - teacher.detach()) ** 2).sum() / teacher.numel()
    return total


def by_convolution(maps, teacher, weights, biases):
    return sum(
        F.mse_loss(F.conv2d(student, weight.view(*weight.shape[:2], 1, 1), bias), teacher.detach())
        for student, weight, bias in zip(maps, weights, biases, strict=True)
    )


def leaves(parts):
    maps, _, weights, biases = parts
    return [*maps, *weights, *biases]


def test_the_loss_of_one_block_is_the_sum_of_mean_squared_errors():
    parts = block(dtype=torch.float64)
    loss, expected = feature_kd_loss(*parts), explicit(*parts)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for came, wanted in zip(
        torch.autograd.grad(loss, leaves(parts)), torch.autograd.grad(expected, leaves(parts)), strict=True
    ):
        torch.testing.assert_close(came, wanted, rtol=1e-10, atol=1e-12)
        assert came.any()


def test_fp32_is_as_accurate_as_convolution_and_mse():
    parts = block(size=8)
    truth = explicit(*([t.double() for t in p] if isinstance(p, list) else p.double() for p in parts))
    ours, plain = (abs(f(*parts).double() - truth) / truth for f in (feature_kd_loss, by_convolution))
    assert ours <= plain + 1e-7


def test_the_loss_of_all_blocks_is_the_sum_over_blocks():
    blocks = [block(size, seed=size) for size in (8, 4, 2)]
    loss = feature_kd_loss(*(list(part) for part in zip(*blocks, strict=True)))
    torch.testing.assert_close(loss, torch.stack([by_convolution(*parts) for parts in blocks]).sum())
    loss.backward()
    for parts in blocks:
        assert all(leaf.grad.any() for leaf in leaves(parts))


def test_the_pseudo_teacher_receives_no_gradient():
    parts = block()
    feature_kd_loss(*parts).backward()
    assert parts[1].grad is None


def test_a_loss_without_differentiable_students_requires_no_gradient():
    maps, teacher, weights, biases = block()
    detached = [[t.detach() for t in part] for part in (maps, weights, biases)]
    assert not feature_kd_loss(detached[0], teacher, *detached[1:]).requires_grad


def test_weights_may_have_the_shape_of_convolutions():
    maps, teacher, weights, biases = block()
    as_convolutions = [weight.detach()[:, :, None, None] for weight in weights]
    assert torch.equal(
        feature_kd_loss(maps, teacher, as_convolutions, biases), feature_kd_loss(maps, teacher, weights, biases)
    )


def test_gradcheck():
    maps, teacher, weights, biases = block(size=2, rows=1, dtype=torch.float64)

    def loss(*tensors):
        return feature_kd_loss(tensors[:3], teacher.detach(), tensors[3:6], tensors[6:])

    assert torch.autograd.gradcheck(loss, (*maps, *weights, *biases))


def test_the_loss_without_students_is_0():
    teacher = block()[1]
    one = feature_kd_loss([], teacher, [], [])
    every = feature_kd_loss([[], []], [teacher, teacher], [[], []], [[], []])
    assert one.shape == every.shape == () and one == every == 0
    assert feature_kd_loss([], teacher.detach().double(), [], []) == 0


def test_under_bf16_autocast_the_loss_is_fp32():
    parts = block()
    with torch.autocast("cpu", torch.bfloat16):
        loss = feature_kd_loss(*parts)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves(parts))


def adapters(students=3):
    torch.manual_seed(0)
    return nn.ModuleList(
        nn.ModuleList(nn.Conv2d(channels, CHANNELS[0], 1) for channels in CHANNELS[1 : students + 1]) for _ in range(2)
    )


def test_the_module_equals_convolutions_and_mean_squared_errors():
    generator = torch.Generator().manual_seed(0)
    features = [[torch.randn(2, c, size, size, generator=generator) for size in (4, 2)] for c in CHANNELS]
    features = [[f.requires_grad_() for f in maps] for maps in features]
    convolutions = adapters()
    loss = FeatureKDLoss()(features, convolutions)
    expected = sum(
        F.mse_loss(convolutions[b][j](features[j + 1][b]), features[0][b].detach()) for b in range(2) for j in range(3)
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad.any() for parameter in convolutions.parameters())
    assert all(f.grad is None for f in features[0]) and all(f.grad.any() for maps in features[1:] for f in maps)


def test_the_module_with_the_pseudo_teacher_alone_is_0():
    features = [[torch.randn(2, 8, 4, 4), torch.randn(2, 8, 2, 2)]]
    assert FeatureKDLoss()(features, adapters(students=0)) == 0


def change(index, value, entry=None):
    parts = list(block())
    if entry is None:
        parts[index] = value
    else:
        parts[index][entry] = value
    return parts


BAD = {
    "too few weights": (
        lambda: [*block()[:2], block()[2][:2], block()[3]],
        r"block 0: expected as many student maps as weights and biases, got 3, 2 and 3",
    ),
    "another size": (
        lambda: change(0, torch.zeros(2, 5, 3, 4), 1),
        r"block 0, student map 1: expected batch and size of the teacher's \[2, 8, 4, 4\], got \[2, 5, 3, 4\]",
    ),
    "another batch": (
        lambda: change(0, torch.zeros(1, 6, 4, 4), 0),
        r"block 0, student map 0: expected batch and size of the teacher's \[2, 8, 4, 4\], got \[1, 6, 4, 4\]",
    ),
    "weight of other channels": (
        lambda: change(2, torch.zeros(8, 5), 2),
        r"block 0, student map 2: expected a weight \[8, 3\(, 1, 1\)\], got \[8, 5\]",
    ),
    "weight of a wider kernel": (
        lambda: change(2, torch.zeros(8, 6, 3, 3), 0),
        r"block 0, student map 0: expected a weight \[8, 6\(, 1, 1\)\], got \[8, 6, 3, 3\]",
    ),
    "bias of other channels": (
        lambda: change(3, torch.zeros(6), 0),
        r"block 0, student map 0: expected a bias \[8\], got \[6\]",
    ),
    "second block": (
        lambda: [[p, q] for p, q in zip(block(), change(3, torch.zeros(6), 1), strict=True)],
        r"block 1, student map 1: expected a bias \[8\], got \[6\]",
    ),
    "maps of fewer blocks": (
        lambda: [[block()[0]], *([p, p] for p in block()[1:])],
        r"student_maps: expected one entry a block \(2\), got 1",
    ),
    "biases of more blocks": (
        lambda: [*([p] for p in block()[:3]), [block()[3]] * 3],
        r"biases: expected one entry a block \(1\), got 3",
    ),
    "no block": (lambda: [[], [], [], []], "teacher_map: expected at least one block, got none"),
}


@pytest.mark.parametrize("name", BAD)
def test_arguments_that_do_not_fit_raise(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        feature_kd_loss(*make())
