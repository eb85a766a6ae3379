"""Running statistics that are updated together: the same bits as with updates by each layer."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from bench.operations.count import DeviceOperations
from oekd_fast.layers.fast_module import FastModule, use_fused_norms
from oekd_fast.layers.running_statistics import collected, updated_together
from oekd_fast.parallel.executor import make_executor

from ..conftest import needs_executor, needs_native

pytestmark = pytest.mark.usefixtures("one_thread")


class Norms(FastModule):
    def __init__(self, **options):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(3, momentum=0.1 * (i + 1), **options) for i in range(3))

    def forward(self, x):
        for norm in self.norms:
            x = self.run_norm_relu(norm, self.run_norm(self.norms[0], x))
        return x


def images():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(4, 3, 5, 5, generator=generator).to(memory_format=torch.channels_last)


def state_after(module, context):
    for _ in range(2):
        with context():
            module(images())
    return module.state_dict()


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=needs_native)])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}], ids=str)
def test_statistics_have_the_bits_of_updates_by_each_layer(options, fused):
    """The first norm runs four times in a forward pass, so its updates follow one another."""
    together = Norms(**options)
    use_fused_norms(together, fused)
    each = copy.deepcopy(together)
    expected = state_after(each, nullcontext)
    got = state_after(together, updated_together)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    if options.get("track_running_stats", True):
        assert [norm.num_batches_tracked.item() for norm in together.norms] == [8, 2, 2]


def test_a_cumulative_average_reads_its_own_count():
    module = Norms()
    module.norms[1].momentum = None
    expected = state_after(copy.deepcopy(module), nullcontext)
    for name, value in state_after(module, updated_together).items():
        assert torch.equal(value, expected[name]), name


def test_a_layer_with_a_hook_is_called():
    module, seen = Norms(), []
    module.norms[1].register_forward_hook(lambda norm, args, y: seen.append(int(norm.num_batches_tracked)))
    with updated_together():
        module(images())
    assert seen == [1]
    assert [norm.num_batches_tracked.item() for norm in module.norms] == [4, 1, 1]


def test_layers_without_a_count_and_in_evaluation_mode():
    module = Norms()
    module.norms[1].num_batches_tracked = None
    module.norms[2].eval()
    before = module.norms[2].running_mean.clone()
    with updated_together():
        module(images())
    assert module.norms[1].num_batches_tracked is None and module.norms[2].num_batches_tracked == 0
    assert torch.equal(module.norms[2].running_mean, before)
    assert not torch.equal(module.norms[1].running_mean, torch.zeros(3))


@needs_native
def test_a_forward_pass_that_fails_updates_nothing():
    module = Norms()
    use_fused_norms(module)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(KeyError), updated_together():
        module(images())
        raise KeyError
    assert collected() is None
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


@needs_native
@pytest.mark.parametrize("kind", ["sequential", pytest.param("parallel", marks=needs_executor)])
def test_students_of_an_executor_are_collected(kind, threads):
    threads(2)
    students = [nn.BatchNorm2d(3, momentum=0.2) for _ in range(3)]
    branches = [Single(norm) for norm in students]
    executor = make_executor(kind, 3, "cpu")
    with DeviceOperations() as counted, updated_together():
        executor.forward(branches, [images()] * 3)
        assert all(norm.num_batches_tracked == 0 for norm in students)
    assert all(norm.num_batches_tracked == 1 for norm in students)
    assert counted.operators["aten::_foreach_add_"] == counted.operators["aten::_foreach_lerp_"] == 1


class Single(FastModule):
    fused = True

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.run_norm(self.norm, x)
