"""Objectives that only the resident Triton kernel supports: gates, the ensemble's cross-entropy, teachers, mixing."""

import math
from functools import cache, partial

import pytest
import torch

from oekd_fast import EnsembleKDOutput, ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import INTERPRETED, batch
from ..support import oracle
from ..support.objectives import OBJECTIVES, Expected, generator, matrix, one

pytest.importorskip("triton", reason="Triton is not installed")

from oekd_fast.kernels.ensemble_kd import launch as ensemble_kd

from ..support.ensemble_kd_launches import CLASSES, PLANS, case, problem

pytestmark = pytest.mark.skipif(
    not INTERPRETED, reason="tests/losses/test_ensemble_kd_gpu.py tests the kernels on a GPU"
)


@cache
def objective(name, dtype=torch.float32):
    """Logits, target, tensors, arguments and expected result of an objective."""
    formula, tensors, arguments = OBJECTIVES[name]
    logits, target = case(dtype=dtype)
    tensors = tensors(3, *logits[0].shape)
    return logits, target, tensors, arguments, Expected(formula, logits, target, tensors)


# The plans of one row a program differ in the number of masked elements alone: an objective runs in one of them.
EACH = [(name, plan) for i, name in enumerate(OBJECTIVES) for plan in ("rows", ("one row", "wide")[i % 2])]


@pytest.mark.parametrize("name, plan", EACH)
def test_objectives_in_every_resident_plan(name, plan):
    logits, target, tensors, arguments, expected = objective(name)
    options = {"ensemble_weights": None} | tensors | arguments
    options["mix_probabilities"] = options.pop("mixing_space", "logits") == "probabilities"
    given = problem(logits, target, options.pop("ensemble_weights"), **options)
    grads = [torch.empty_like(z) for z in logits]
    of_rows = torch.empty(len(target), 3) if given.ensemble_learns else None
    result, launch = ensemble_kd.loss_launch(given, grads, plan=PLANS[plan], weights_grad=of_rows)
    launch.run(given.device)
    weights = given.ensemble_weights
    of_weights = None if weights is None or of_rows is None else of_rows if weights.dim() == 2 else of_rows.sum(dim=0)
    expected.check(EnsembleKDOutput(*result.statistics), grads, of_weights)
    assert result.counted == (target != -100).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["hinton", "mutual", "one", "logits and a teacher mixed, T = 2.5"])
def test_objectives_by_autograd(name, dtype):
    logits, target, tensors, arguments, expected = objective(name, dtype)
    leaves = [z.detach().requires_grad_() for z in logits]
    given = {key: t.detach().requires_grad_(key == "ensemble_weights") for key, t in tensors.items()}
    output = ensemble_kd_loss(leaves, target, backend="triton", **given, **arguments)
    output.loss.backward()
    expected.check(output, [z.grad for z in leaves], given["ensemble_weights"].grad if name == "one" else None)


def test_mixing_without_a_target_and_with_excluded_classes():
    logits, _ = batch(3, 5, CLASSES)
    for z in logits:
        z[:, 3::4] = -math.inf
    logits[2][:, 10:] = -math.inf
    mixing = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for mixing_space in ("logits", "probabilities"):
        options = {"mixing": mixing, "mixing_space": mixing_space, "ce_weight": 0.0}
        output, grads = ensemble_kd_value_and_grad(logits, None, backend="triton", **options)
        exact = [z.double() for z in logits]
        truth, right = ensemble_kd_value_and_grad(exact, None, backend="reference", **options)
        assert oracle.error(output.kd, truth.kd) <= 4 * oracle.EPSILON
        assert oracle.error(oracle.stack(grads), oracle.stack(right)) <= 4 * oracle.EPSILON


def test_one_with_an_attached_target():
    logits, target, tensors, arguments, _ = objective("one")
    expected = Expected(partial(one, attached=True), logits, target, tensors)
    of_gate = torch.empty_like(tensors["ensemble_weights"])
    options = {**tensors, **arguments, "detach_ensemble": False, "backend": "triton", "weights_grad": of_gate}
    expected.check(*ensemble_kd_value_and_grad(logits, target, **options), of_gate)


def test_the_weight_of_the_ensembles_cross_entropy_may_be_a_tensor():
    logits, target, tensors, arguments, _ = objective("one")
    numbers = arguments | {"temperature": 8.0, "ensemble_ce_weight": 0.75}
    given = numbers | {"ensemble_ce_weight": torch.tensor(0.75)}
    (came, grads), (expected, expected_grads) = (
        ensemble_kd_value_and_grad(logits, target, backend="triton", **tensors, **options)
        for options in (given, numbers)
    )
    assert all(torch.equal(a, b) for a, b in zip((*came, *grads), (*expected, *expected_grads), strict=True))


@pytest.mark.parametrize("space", ["logits", "probabilities"])
def test_teachers_may_have_any_dtypes_and_strides(space):
    logits, target = case()
    exact = (3.0 * torch.randn(4, *logits[0].shape, generator=generator())).bfloat16().half()
    stacked = exact.float()
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    strided = [teacher.to(dtype).t().contiguous().t() for teacher, dtype in zip(stacked, dtypes, strict=True)]
    options = {"mixing": matrix(3, 7), "mixing_space": space, "backend": "triton"}
    (expected, expected_grads), (came, grads) = (
        ensemble_kd_value_and_grad(logits, target, teacher_logits=given, **options) for given in (stacked, strided)
    )
    assert all(torch.equal(a, b) for a, b in zip((*came, *grads), (*expected, *expected_grads), strict=True))


@pytest.mark.parametrize("space", ["logits", "probabilities"])
def test_teachers_with_weight_zero_are_excluded_even_if_their_logits_are_minus_infinity(space):
    logits, target = case()
    given = 3.0 * torch.randn(2, *logits[0].shape, generator=generator())
    mixing = matrix(3, 5)
    mixing[:, 3] = 0.0
    given[0] = -math.inf
    options = {"mixing_space": space, "backend": "triton"}
    came, grads = ensemble_kd_value_and_grad(logits, target, teacher_logits=given, mixing=mixing, **options)
    expected, expected_grads = ensemble_kd_value_and_grad(
        logits, target, teacher_logits=given[1], mixing=mixing[:, [0, 1, 2, 4]], **options
    )
    for a, b in zip((*came, *grads), (*expected, *expected_grads), strict=True):
        assert oracle.error(a, b) <= 2 * oracle.EPSILON
