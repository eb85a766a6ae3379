"""Results of parallel execution equal those of sequential execution."""

import copy
from contextlib import nullcontext

import pytest
import torch

from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.parallel.executor import make_executor

from ..conftest import needs_executor


def step(executor, branches, shared, context, train):
    """Run forward, and backward if `train`; return outputs, gradients and buffers."""
    inputs = [shared.detach().requires_grad_(train) for _ in branches]
    with context():
        outputs = executor.forward(branches, inputs)
    left = [tensor for logits, maps in outputs for tensor in (logits, *maps)]
    if train:
        roots = [[logits, *maps] for logits, maps in outputs]
        executor.backward(roots, [[torch.full_like(t, 0.1) for t in student] for student in roots])
        left += [x.grad for x in inputs] + [p.grad for p in branches.parameters()]
    return left + list(branches.buffers())


CONTEXTS = {
    "plain": (nullcontext, True),
    "bf16": (lambda: torch.autocast("cpu", torch.bfloat16), True),
    "no_grad": (torch.no_grad, False),
    "inference": (torch.inference_mode, False),
}


@needs_executor
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", CONTEXTS)
def test_resnet_branches_agree_bit_for_bit(name, training):
    context, train = CONTEXTS[name]
    torch.manual_seed(0)
    family = build_ensemble("resnet20", 3, 10).to(memory_format=torch.channels_last).train(training)
    shared = torch.randn(8, 16, 16, 16).to(memory_format=torch.channels_last)
    left = {}
    for kind in ("sequential", "parallel"):
        branches = copy.deepcopy(family.branches)
        executor = make_executor(kind, 3, "cpu", deterministic=True)
        left[kind] = [t for _ in range(2) for t in step(executor, branches, shared, context, train)]
    assert len(left["parallel"]) == len(left["sequential"]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*left.values(), strict=True))


@needs_executor
def test_runs_are_reproducible_without_deterministic_mode(threads):
    threads(4)
    torch.manual_seed(0)
    family, shared = build_ensemble("resnet20", 3, 10), torch.randn(8, 16, 8, 8)

    def run():
        executor, branches = make_executor("parallel", 3, "cpu"), copy.deepcopy(family.branches)
        return [t for _ in range(3) for t in step(executor, branches, shared, nullcontext, True)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("num_students", [1, 2, 40])
def test_results_are_in_the_order_of_the_students(kind, num_students):
    executor = make_executor(kind, num_students, "cpu", deterministic=True)
    weights = [torch.tensor(float(j), requires_grad=True) for j in range(num_students)]
    for _ in range(2):
        results = executor.forward([lambda x, w=w: w * x for w in weights], [10] * num_students)
        assert results == [10.0 * j for j in range(num_students)]
    executor.backward([[r] for r in results], [[torch.tensor(2.0)]] * num_students)
    assert [w.grad.item() for w in weights] == [20.0] * num_students


def test_a_scalar_root_needs_no_gradient_and_a_student_may_have_no_roots(kind):
    executor, x = make_executor(kind, 2, "cpu", deterministic=True), torch.ones(3, requires_grad=True)
    executor.backward([[(3 * x).sum()], []], [[None], []])
    assert x.grad.tolist() == [3, 3, 3]
