"""Graphs of networks: what is followed, what stays whole, and the errors of what cannot be followed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from oekd_fast.models.any_network.errors import CutError
from oekd_fast.models.any_network.modes import trace_modes
from oekd_fast.models.any_network.pieces import whole_module
from oekd_fast.models.any_network.trace import trace_network

from ...support.width_networks import ResNet, ViT


def targets(trace):
    return [str(node.target) for node in trace.graph.nodes if node.op == "call_module"]


def test_sequentials_are_followed_and_other_modules_stay_whole():
    trace = trace_network(ResNet())
    assert targets(trace) == ["stem", "stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1", "norm", "head"]
    inside = trace_network(ResNet(), {"stages.0.0"})
    assert targets(inside)[1:5] == [f"stages.0.0.{name}" for name in ("act", "conv1", "norm", "conv2")]


def test_optional_arguments_keep_their_defaults():
    class Optional(nn.Linear):
        def forward(self, x, mask=None, scale=2.0):
            x = x if mask is None else x * mask
            return super().forward(x) * scale

    network = Optional(3, 3)
    trace = trace_network(network)
    assert [node.op for node in trace.graph.nodes].count("placeholder") == 1
    x = torch.randn(2, 3)
    assert torch.equal(whole_module(network, trace, {})(x), network(x))


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


def test_control_flow_over_values_is_an_error_that_names_the_line():
    with pytest.raises(CutError, match=r"forward of Branching cannot be traced: .*test_trace\.py:\d+: if x\.sum") as e:
        trace_network(Branching())
    assert "StudentEnsemble.from_factory" in str(e.value) and "\n" not in str(e.value)


def test_a_module_that_cannot_be_followed_stays_whole():
    network = nn.Sequential(nn.Linear(2, 2), Branching())
    assert targets(trace_network(network, {"1"})) == ["0", "1"]


def test_constants_of_the_mode_follow_the_mode():
    network = ViT(depth=1, dropout=0.5)
    trace, by_mode = trace_modes(network)
    assert [(m.in_training, m.in_evaluation) for m in by_mode.values()] == [(True, False)]
    assert network.training
    whole = whole_module(network, trace, by_mode)
    x = torch.randn(2, 3, 16, 16)
    for training in (True, False):
        network.train(training), whole.train(training)
        results = []
        for module in (network, whole):
            torch.manual_seed(0)
            results.append(module(x))
        assert torch.equal(*results)


class Auxiliary(nn.Linear):
    def forward(self, x):
        x = super().forward(x)
        return F.relu(x) if self.training else x


def test_other_operations_in_training_are_an_error_unless_the_module_stays_whole():
    message = "forward of Auxiliary has other operations in training than in evaluation, from 'output' on"
    with pytest.raises(CutError, match=message):
        trace_modes(Auxiliary(2, 2))
    network = nn.Sequential(nn.Linear(2, 2), Auxiliary(2, 2))
    assert targets(trace_modes(network, {"1"})[0]) == ["0", "1"]


def test_tensors_that_are_no_attributes_become_constants():
    scale = torch.tensor([1.0, 2.0, 3.0])

    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * scale

    network = Scaled(3, 3)
    before = set(vars(network))
    trace = trace_network(network)
    assert set(vars(network)) == before
    x = torch.randn(2, 3)
    assert torch.equal(whole_module(network, trace, {})(x), network(x))
