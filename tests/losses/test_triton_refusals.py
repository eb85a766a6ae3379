"""Transforms that the Triton kernels do not support raise an error that names the reference."""

import pytest
import torch
from torch.autograd import forward_ad

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad, feature_kd_loss, feature_kd_value_and_grad

from ..conftest import BACKENDS, batch

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif("triton" not in BACKENDS, reason="needs Triton's interpreter"),
]
LOGITS, TARGET = batch(students=2, rows=4, classes=5)
TEACHER, ADAPTER, BIAS = torch.ones(1, 2, 2, 2), torch.ones(2, 3), torch.zeros(2)


def ensemble(z):
    return ensemble_kd_loss([z, LOGITS[1]], TARGET, backend="triton").loss


def ensemble_at_once(z):
    return ensemble_kd_value_and_grad([z, LOGITS[1]], TARGET, backend="triton")[0].loss


def feature(x):
    return feature_kd_loss([x], TEACHER, [ADAPTER], [BIAS], backend="triton")


def feature_at_once(x):
    return feature_kd_value_and_grad([x], TEACHER, [ADAPTER], [BIAS], backend="triton")[0]


CALLS = {ensemble: LOGITS[0], ensemble_at_once: LOGITS[0]} | dict.fromkeys(
    (feature, feature_at_once), torch.ones(1, 3, 2, 2)
)


def dual(call, x):
    with forward_ad.dual_level():
        return call(forward_ad.make_dual(x, x))


TRANSFORMS = {
    "grad": lambda call, x: torch.func.grad(call)(x),
    "jvp": lambda call, x: torch.func.jvp(call, (x,), (x,)),
    "vmap": lambda call, x: torch.func.vmap(call)(torch.stack([x, x])),
    "dual tensor": dual,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_torch_func_and_forward_mode(call, transform):
    text = "backend 'triton': expected .*backend='reference'.* supports this"
    with pytest.raises(ValueError, match=text):
        TRANSFORMS[transform](call, CALLS[call])


@pytest.mark.parametrize("backend", ["triton"])  # marks the test as one of the interpreter
@pytest.mark.parametrize("call", [ensemble, feature], ids=lambda call: call.__name__)
def test_a_second_derivative(call, backend):
    x = CALLS[call].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="differentiable once, got create_graph=True; backend='reference' is"):
        torch.autograd.grad(call(x), x, create_graph=True)
