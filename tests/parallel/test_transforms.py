"""Transforms of torch.func and forward-mode AD around an executor give the numbers of sequential execution."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from oekd_fast.parallel.executor import StudentError, make_executor

from ..conftest import needs_executor
from .calls import parallel, raised_by

pytestmark = needs_executor
X = torch.arange(1.0, 4.0, dtype=torch.float64)
ROWS = torch.arange(6.0, dtype=torch.float64).view(2, 3)


@pytest.fixture
def results():
    executor = parallel()
    return lambda x: torch.stack(executor.forward([torch.exp, torch.sin], [x, x]))


def plain(x):
    return torch.stack([torch.exp(x), torch.sin(x)])


def total(function):
    return lambda x: function(x).square().sum()


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: grad(total(f))(X),
        lambda f: jvp(f, (X,), (X,))[1],
        lambda f: vjp(f, X)[1](plain(X))[0],
        lambda f: jacrev(f)(X),
        lambda f: jacfwd(f)(X),
        lambda f: hessian(total(f))(X),
        lambda f: vmap(f)(ROWS),
        lambda f: vmap(grad(total(f)))(ROWS),
        lambda f: torch.autograd.functional.jacobian(f, X, vectorize=True),
    ],
    ids=["grad", "jvp", "vjp", "jacrev", "jacfwd", "hessian", "vmap", "vmap of grad", "vectorised jacobian"],
)
def test_a_transform_around_forward_gives_the_sequential_result(results, transform):
    for _ in range(2):
        torch.testing.assert_close(transform(results), transform(plain), rtol=1e-12, atol=0)


def test_a_transform_inside_a_student_gives_the_sequential_result():
    executor = parallel()
    inside = grad(lambda x: x.exp().sum())
    for result in executor.forward([inside, vmap(torch.exp)], [X, X]):
        torch.testing.assert_close(result, X.exp(), rtol=1e-12, atol=0)


def test_forward_mode_ad_gives_the_sequential_result(results):
    with forward_ad.dual_level():
        primal, tangent = forward_ad.unpack_dual(results(forward_ad.make_dual(X, 2 * X)))
    torch.testing.assert_close(primal, plain(X), rtol=1e-12, atol=0)
    torch.testing.assert_close(tangent, torch.stack([X.exp(), X.cos()]) * 2 * X, rtol=1e-12, atol=0)


def test_functional_call_around_an_executor_gives_the_sequential_gradients():
    class Family(nn.Module):
        def __init__(self):
            super().__init__()
            self.students = nn.ModuleList(nn.Linear(3, 2).double() for _ in range(2))
            self.executor = parallel()

        def forward(self, x):
            return sum(r.square().sum() for r in self.executor.forward(self.students, [x, x]))

    torch.manual_seed(0)
    family = Family()
    parameters = {name: p.detach() for name, p in family.named_parameters()}
    grads = grad(lambda p: functional_call(family, p, (X,)))(parameters)
    sum(student(X).square().sum() for student in family.students).backward()
    for name, parameter in family.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-12, atol=0)


def test_random_numbers_under_vmap_equal_those_of_sequential_execution():
    executor = parallel()

    def noisy(x):
        return x + torch.rand(3)

    def call(run):
        torch.manual_seed(0)
        return vmap(lambda x: torch.stack(run(x)), randomness="different")(torch.zeros(2, 3))

    expected = call(lambda x: [noisy(x), noisy(x)])
    with pytest.warns(UserWarning, match="known to draw"):  # `parallel` has learned that students do not draw
        call(lambda x: executor.forward([noisy] * 2, [x, x]))
    assert torch.equal(call(lambda x: executor.forward([noisy] * 2, [x, x])), expected)


@pytest.mark.parametrize("transform", [grad, lambda f: vmap(f), lambda f: lambda x: jvp(f, (x,), (x,))])
def test_backward_inside_a_transform_raises(kind, transform):
    executor = make_executor(kind, 2, "cpu", deterministic=True)
    executor.forward([torch.exp] * 2, [X, X])

    def function(x):
        executor.backward([[(x * x).sum()], []], [[None], []])
        return x.sum()

    error = raised_by(lambda: transform(function)(X))
    if isinstance(error, StudentError):
        assert str(error).startswith("student 1: RuntimeError: backward() called inside a functorch transform")
    else:
        text = "backward: expected a call outside of torch.func transforms; use torch.func.grad or torch.func.vjp"
        assert type(error) is RuntimeError and str(error) == text
