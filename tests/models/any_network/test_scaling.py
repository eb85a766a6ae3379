"""Narrower copies of networks: sizes, weights, and that the module stays as it is."""

import pytest
import torch
from torch import nn

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


class ReadsSizes(nn.Module):
    """Constants made by the size of a map, a transposed convolution, a gate, tied weights and a dictionary."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 16, 3, 2, 1), nn.ConvTranspose2d(16, 16, 2, 2)
        self.norm, self.gate = nn.InstanceNorm2d(16, affine=True), nn.Conv2d(16, 48, 1)
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)
        self.second.weight = self.first.weight
        self.head = nn.Linear(24, 10)

    def forward(self, images):
        x = self.norm(self.up(self.down(images)))
        x = nn.functional.glu(self.gate(x + torch.zeros_like(x)), 1).mean((2, 3))
        return {"logits": self.head(self.second(self.first(x).relu()))}


def test_constants_of_the_size_of_a_map_tied_weights_and_dictionaries(images):
    narrow = scale_module(ReadsSizes(), images, Width(1, 2))
    assert narrow(images)["logits"].shape == (2, 10)
    assert narrow.up.weight.shape == (8, 8, 2, 2) and narrow.gate.weight.shape == (24, 8, 1, 1)
    assert narrow.first.weight is narrow.second.weight and narrow.first.weight.shape == (12, 12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_and_memory_format_stay(images, dtype):
    network = NETWORKS["resnet"]().to(dtype=dtype, memory_format=torch.channels_last)
    narrow = scale_module(network, images.to(dtype), Width(1, 2))
    assert {parameter.dtype for parameter in narrow.parameters()} == {dtype}
    assert narrow[1].conv1[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_on_the_meta_device_keeps_its_first_channels(images):
    network = NETWORKS["mobilenet"]().to("meta")
    narrow = scale_module(network, images.to("meta"), Width(1, 2))
    assert narrow(images.to("meta")).shape == (2, 10) and narrow[0][0].weight.shape == (8, 3, 3, 3)
