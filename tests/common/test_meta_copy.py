"""Copies of modules on the meta device leave the modules as they are."""

import torch
from torch import nn

from oekd_fast.common.meta_copy import meta_copy


def network():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    module.register_buffer("table", torch.arange(3), persistent=False)
    module[0].weight.requires_grad_(False)
    return module


def test_parameters_and_buffers_are_on_meta():
    module = network()
    copied = meta_copy(module)
    tensors = [*copied.parameters(), *copied.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"} and len(tensors) == 8
    assert [p.requires_grad for p in copied.parameters()] == [False, True, True, True]
    assert all(tensor.device.type == "cpu" for tensor in [*module.parameters(), *module.buffers()])
    assert copied.state_dict().keys() == module.state_dict().keys()


def test_buffers_outside_of_the_state_dict_may_stay():
    module = network()
    copied = meta_copy(module, buffers=False)
    assert torch.equal(copied.table, module.table) and copied.table is not module.table
    assert copied[1].running_mean.is_meta


def test_shared_parameters_stay_shared():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    copied = meta_copy(module)
    assert copied[1].weight is copied[0].weight
