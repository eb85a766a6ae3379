"""Narrower copies of networks: sizes, weights, and that the module stays as it is."""

import pytest
import torch

from oekd_fast.models import Width
from oekd_fast.models.any_network import scale_module

from ...support.small_networks import IMAGE, NETWORKS


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]()


@pytest.fixture
def images():
    return torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(1))


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_full_width_gives_the_same_bits(network, images):
    copy = scale_module(network.eval(), images, Width(0, 5))
    assert torch.equal(copy(images), network(images))
    assert not {id(p) for p in copy.parameters()} & {id(p) for p in network.parameters()}


@pytest.mark.parametrize("j", [1, 4])
def test_narrower_copies_run_and_have_about_the_square_of_the_share(network, images, j):
    width = Width(j, 5)
    copy = scale_module(network, images, width).eval()
    assert copy(images).shape == (2, 10) and copy(images).isfinite().all()
    share = parameters(copy) / parameters(network)
    assert 0.8 * float(width.ratio) ** 2 < share < float(width.ratio) ** 2 + 0.15


def test_the_argument_stays_as_it_is(network, images):
    calls = []
    network.train().register_forward_hook(lambda *_: calls.append(1))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    copy = scale_module(network, images, Width(1, 2))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules()) and all(module.training for module in copy.modules())
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()][0] == 1
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in copy.modules()) == 1
