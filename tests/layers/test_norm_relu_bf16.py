"""The fused BatchNorm, residual and ReLU with maps in bfloat16: the results of float32, rounded once."""

import copy
import math

import pytest
import torch
from torch import nn

from oekd_fast.common.op_errors import raising_value_error
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.layers.fast_module import use_fused_norms

from ..conftest import ISAS, needs_native
from ..support.oracle import EPSILON, error
from .norm_relu_calls import (
    EPS,
    NormReLU,
    by_module,
    by_ops,
    in_bf16,
    in_fp32,
    in_layout,
    ops,
    plain,
    problem,
    random,
    same_bits,
)

pytestmark = needs_native

# [B, C, H, W]: sizes around a vector and a tile, one channel, many pieces of work, more channels than rows.
SHAPES = [
    *((2, channels, 5, 7) for channels in (1, 3, 16, 25, 51, 130)),
    (1, 16, 1, 2),
    (1, 1, 1, 33),
    (2, 51, 1, 1),
    (8, 16, 33, 31),
    (16, 3, 63, 61),
    (128, 512, 1, 1),
]


def backward(dy, x, y, weight, bias, mean, rstd, isa):
    return ops.norm_relu_backward(dy, x, y, weight, bias, mean, rstd, y is not None, isa=isa)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_results_have_the_bits_of_float32_rounded_once(isa, shape, residual, layout, one_thread):
    given = in_layout(layout, *in_bf16(*problem(shape, residual=residual)))
    x, weight, bias, added, dy = given
    wide_x, *_, wide_added, wide_dy = in_fp32(*given)
    y, mean, variance, rstd = ops.norm_relu(x, weight, bias, added, EPS, isa=isa)
    wide_y, *numbers = ops.norm_relu(wide_x, weight, bias, wide_added, EPS, isa=isa)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=layout)
    assert same_bits([y, mean, variance, rstd], [wide_y.bfloat16(), *numbers])

    kept, wide_kept = (y, y.float()) if residual else (None, None)
    dx, *grads, dresidual = backward(dy, x, kept, weight, bias, mean, rstd, isa)
    wide_dx, *wide_grads, wide_dresidual = backward(wide_dy, wide_x, wide_kept, weight, bias, mean, rstd, isa)
    assert dx.dtype == dresidual.dtype == torch.bfloat16
    assert same_bits([dx, *grads, dresidual], [wide_dx.bfloat16(), *wide_grads, wide_dresidual.bfloat16()])


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(2, 25, 5, 7), (8, 16, 33, 31)], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_errors_are_no_larger_than_those_of_pytorch_in_bfloat16(isa, shape, residual, one_thread):
    given = in_bf16(*problem(shape, residual=residual))
    truth = plain(*given, torch.float64)
    ours, theirs = by_ops(*given, isa=isa), by_module(*given, fused=False)
    for place in (0, *range(3, len(truth))):  # the statistics have the bits of float32
        came, allowed = (error(results[place].float(), truth[place]) for results in (ours, theirs))
        assert came <= allowed + EPSILON


@pytest.mark.parametrize("isa", ISAS)
def test_backward_masks_exactly_the_outputs_that_are_zero(isa):
    """Some outputs are so small that they are 0 in bfloat16."""
    x, _, bias, _, _ = in_bf16(*problem((4, 25, 9, 7), residual=False))
    weight, ones = torch.ones(25), torch.ones_like(x)
    weight[::2] = 2.0**-126
    bias[::2] = 0
    y, mean, _, rstd = ops.norm_relu(x, weight, bias, None, EPS, isa=isa)
    assert 0 < (y[:, ::2] > 0).sum() < (x[:, ::2] > mean[::2, None, None]).sum()
    assert not ((y > 0) & (y < 2.0**-126)).any()
    *_, dbias, _ = backward(ones, x, None, weight, bias, mean, rstd, isa)
    assert torch.equal(dbias, (y > 0).sum((0, 2, 3)).float())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pattern", [0x7FC0, 0x7FFF, 0x7F81, 0xFFFF - 0x10000])
def test_every_nan_stays_nan(isa, pattern):
    x, weight, bias, added, dy = in_bf16(*problem((3, 19, 5, 5)))
    x[1, 3, 2, 2] = 9.0
    added.view(torch.int16)[1, 3, 2, 2] = pattern
    y, mean, _, rstd = ops.norm_relu(x, weight, bias, added, EPS, isa=isa)
    assert y.isnan().nonzero().tolist() == [[1, 3, 2, 2]]
    dy.view(torch.int16)[1, 3, 2, 2] = pattern
    dx, _, dbias, dresidual = backward(dy, x, y, weight, bias, mean, rstd, isa)
    assert dresidual.isnan().nonzero().tolist() == [[1, 3, 2, 2]]
    assert dx[:, 3].isnan().all() and dbias.isnan().nonzero().tolist() == [[3]] and dx.isnan().sum() == 3 * 5 * 5


@pytest.mark.parametrize("where", ["x", "residual", "dy"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_propagate_as_in_pytorch(where, value):
    x, weight, bias, added, dy = in_bf16(*problem((3, 19, 5, 5)))
    x[1, 3, 2, 2] = 9.0  # makes the output positive, so that gradients pass
    given = {"x": x, "weight": weight, "bias": bias, "residual": added, "dy": dy}
    given[where][1, 3, 2, 2] = value
    came, expected = (by_module(**given, fused=fused) for fused in (True, False))
    for ours, theirs in zip(came, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(16, 16, 63, 61), (3, 25, 40, 40)], ids=str)
def test_results_do_not_depend_on_threads_or_runs(isa, shape, threads):
    given = in_bf16(*problem(shape))
    threads(1)
    alone = by_ops(*given, isa=isa)
    threads(2)
    assert all(same_bits(by_ops(*given, isa=isa), alone) for _ in range(3))


@pytest.mark.parametrize("change", [lambda t: t.contiguous(), lambda t: torch.cat([t, t], dim=3)[..., ::2]])
def test_gradients_and_residuals_may_have_other_layouts(change):
    x, weight, bias, residual, dy = in_bf16(*problem((4, 9, 6, 5)))
    changed = [x, weight, bias, change(residual), change(dy)]
    same = [x, weight, bias, *(t.clone(memory_format=torch.channels_last) for t in changed[3:])]
    assert same_bits(by_ops(*changed), by_ops(*same))


def test_maps_of_different_types_raise():
    x, numbers = random(4, 9, 6, 5), random(9)
    with pytest.raises(ValueError, match="^residual: expected bfloat16, got Float$"):
        raising_value_error(ops.norm_relu)(x.bfloat16(), numbers, numbers, x, EPS)
    with pytest.raises(ValueError, match="^dy: expected bfloat16, got Float$"):
        raising_value_error(backward)(x, x.bfloat16(), None, *[numbers] * 4, "auto")
    with pytest.raises(ValueError, match="^weight: expected float32, got BFloat16$"):
        raising_value_error(ops.norm_relu)(x.bfloat16(), numbers.bfloat16(), numbers, None, EPS)


@pytest.mark.parametrize("residual", [False, True])
def test_ops_pass_opcheck(residual, one_thread):
    x, weight, bias, added, dy = in_bf16(*problem((2, 9, 4, 5), residual=residual))
    torch.library.opcheck(ops.norm_relu.default, (x, weight, bias, added, EPS))
    y, mean, _, rstd = ops.norm_relu(x, weight, bias, added, EPS)
    kept = y if residual else None
    torch.library.opcheck(ops.norm_relu_backward.default, (dy, x, kept, weight, bias, mean, rstd, residual))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(9, 9, 3, padding=1, bias=False), NormReLU(9)

    def forward(self, x):
        return self.norm(self.conv(x), x)


def test_the_module_uses_the_ops_under_autocast():
    block = Block()
    use_fused_norms(block)
    x = random(4, 9, 6, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
        before = block.conv(x)
    norm = block.norm.norm
    expected, mean, variance, _ = ops.norm_relu(before, norm.weight, norm.bias, x, EPS)
    assert torch.equal(y, expected) and y.grad_fn.name() == "_NormReLUBackward"
    assert norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance)
    y.float().sum().backward()
    assert norm.weight.grad.dtype == block.conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("types", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_maps_of_different_types_use_plain_pytorch(types):
    norm, expected = NormReLU(9), nn.BatchNorm2d(9)
    use_fused_norms(norm)
    x, added = (random(4, 9, 6, 5, seed=seed).to(dtype) for seed, dtype in enumerate(types))
    y = norm(x, added)
    assert torch.equal(y, torch.relu(expected(x) + added)) and y.dtype == torch.float32


@pytest.mark.slow
def test_gradients_of_a_family_are_about_as_accurate_as_in_pytorch(one_thread):
    torch.manual_seed(0)
    family = build_ensemble("resnet20").to(memory_format=torch.channels_last)
    families = {"fused": family, "plain": copy.deepcopy(family), "exact": copy.deepcopy(family).double()}
    use_fused_norms(family)
    images, labels = random(8, 3, 16, 16), torch.arange(8)
    for name, one in families.items():
        with torch.autocast("cpu", torch.bfloat16, enabled=name != "exact"):
            output = one(images.to(next(one.parameters()).dtype))
        sum(nn.functional.cross_entropy(z.to(torch.float64), labels) for z in output.logits).backward()
    exact = [p.grad for p in families["exact"].network_parameters()]
    errors = {
        name: sorted(error(p.grad, q) for p, q in zip(families[name].network_parameters(), exact, strict=True))
        for name in ("fused", "plain")
    }
    # Most of the error is that of the convolutions, which is the same in both up to chance.
    for place in (len(exact) // 2, -1):
        assert errors["fused"][place] <= 1.05 * errors["plain"][place]
