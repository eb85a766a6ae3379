"""BatchNorm with statistics over all ranks against torch's BatchNorm of the whole batch."""

import copy

import pytest
import torch
from torch import nn

from oekd_fast.distributed.norms import GlobalBatchNorm2d, use_global_norms
from oekd_fast.distributed.world import ALONE

CASES = {
    "affine": {},
    "without affine": {"affine": False},
    "cumulative": {"momentum": None},
    "no running statistics": {"track_running_stats": False},
}


def problem(options, kind=nn.BatchNorm2d, dtype=torch.float64, rows=7):
    generator = torch.Generator().manual_seed(0)
    norm = kind(3, **options).double()
    if norm.affine:
        norm.weight.data.copy_(torch.randn(3, generator=generator))
        norm.bias.data.copy_(torch.randn(3, generator=generator))
    shape = (rows, 3, 4, 5) if kind is nn.BatchNorm2d else (rows, 3)
    # A mean far above the deviation, which one sum of squares would lose.
    x = (100.0 + torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return norm, x, weights


def apply(norm, x, weights, times=2):
    """Return output, gradients and buffers after `times` steps."""
    for _ in range(times):
        x = x.detach().requires_grad_()
        y = norm(x)
        (y * weights).sum().backward()
    grads = [p.grad for p in norm.parameters()]
    return y.detach(), x.grad, grads, [b.clone() for b in norm.buffers()]


def apply_part(world, options, kind, dtype):
    norm, x, weights = problem(options, kind, dtype)
    part = world.part(len(x)).rows
    holder = nn.Sequential(norm.to(torch.promote_types(dtype, torch.float32)))
    use_global_norms(holder, world)
    return apply(holder[0], x[part], weights[part])


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_statistics_are_those_of_the_whole_batch(ranks, options, kind):
    norm, x, weights = problem(options, kind)
    y, x_grad, grads, buffers = apply(norm, x, weights)
    results = ranks.run(3, apply_part, options, kind, torch.float64)
    close = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(torch.cat([r[0] for r in results]), y, **close)
    torch.testing.assert_close(torch.cat([r[1] for r in results]), x_grad, **close)
    for i, grad in enumerate(grads):
        torch.testing.assert_close(sum(r[2][i] for r in results), grad, **close)
    for result in results:
        torch.testing.assert_close(result[3], buffers, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_maps_are_as_exact_as_torchs(ranks, dtype):
    norm, x, weights = problem({}, nn.BatchNorm2d, dtype)
    y, *_ = apply(copy.deepcopy(norm), x.double(), weights.double())
    theirs, *_ = apply(norm.float(), x, weights)
    ours = torch.cat([result[0] for result in ranks.run(2, apply_part, {}, nn.BatchNorm2d, dtype)])
    assert ours.dtype == dtype
    assert (ours.double() - y).norm() <= (theirs.double() - y).norm() + 1e-7 * y.norm()


def test_evaluation_uses_running_statistics_and_shares_parameters():
    norm, x, _ = problem({})
    ours = GlobalBatchNorm2d(norm.eval(), ALONE)
    assert not ours.training
    assert torch.equal(ours(x), norm(x))
    assert dict(ours.named_parameters()).keys() == dict(norm.named_parameters()).keys()
    assert ours.weight is norm.weight
    assert ours.running_mean is norm.running_mean
    assert copy.deepcopy(ours).state_dict().keys() == norm.state_dict().keys()


def test_other_layers_are_left_as_they_are():
    class Own(nn.BatchNorm2d):
        pass

    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3)), Own(3), nn.GroupNorm(1, 3))
    use_global_norms(net, ALONE)
    assert [type(module) for module in (net[0], net[2], net[3])] == [nn.Conv2d, Own, nn.GroupNorm]
    assert type(net[1][0]) is GlobalBatchNorm2d
