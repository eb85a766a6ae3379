"""Temperatures, weights and mixing matrices that require a gradient: the reference gives it, other backends refuse."""

import re

import pytest
import torch

from oekd_fast import EnsembleKDLoss, ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import BACKENDS, batch

pytestmark = pytest.mark.usefixtures("one_thread")
NUMBERS = ("temperature", "ce_weight", "kd_weight", "ensemble_ce_weight")
COMPILED = [name for name in BACKENDS if name != "reference"]


def learned(name, dtype=torch.float32, students=3, sources=3):
    generator = torch.Generator().manual_seed(1)
    shape = (students, sources) if name == "mixing" else ()
    return (0.5 + torch.rand(shape, generator=generator, dtype=dtype)).requires_grad_()


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_numbers_get_the_gradient_of_the_formula(name, backend):
    logits, target = batch(students=3, rows=5, classes=4, dtype=torch.float64)
    target[2] = -100
    value = learned(name, torch.float64)

    def loss(value):
        return ensemble_kd_loss(logits, target, label_smoothing=0.1, backend=backend, **{name: value}).loss

    assert torch.autograd.gradcheck(loss, (value,), check_forward_ad=True)
    if name == "temperature":  # the loss is linear in the weights
        assert torch.autograd.gradgradcheck(loss, (value,))


def test_temperature_gets_the_gradient_by_its_formula():
    # d/dT T^2 KL(t || q), with t = softmax(zE / T), q = softmax(z / T) and a constant zE.
    logits, _ = batch(students=2, rows=1, classes=4, dtype=torch.float64)
    temperature = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    ensemble_kd_loss(logits, None, temperature=temperature, ce_weight=0.0, kd_weight=1.0).loss.backward()
    ensemble, expected, t_value = sum(logits)[0] / 2, 0.0, 2.5
    t = (ensemble / t_value).softmax(0)
    for (z,) in logits:
        q = (z / t_value).softmax(0)
        kl = (t * (t / q).log()).sum()
        # dt/dT = -t (zE - <zE>_t) / T^2, and d log(t/q)/dT = -(zE - <zE>_t - z + <z>_q) / T^2
        dt = -t * (ensemble - t @ ensemble) / t_value**2
        change = -(ensemble - t @ ensemble - z + q @ z) / t_value**2
        expected += 2 * t_value * kl + t_value**2 * (dt @ (t / q).log() + t @ change)
    torch.testing.assert_close(temperature.grad, expected)


def test_temperature_gets_a_finite_gradient_beside_excluded_classes():
    logits, target = batch(students=2, rows=4, classes=6, dtype=torch.float64)
    hidden = [z.clone() for z in logits]
    for z in hidden:
        z[:, 4:] = -torch.inf
    target %= 4
    grads = []
    for z in (hidden, [z[:, :4] for z in logits]):
        temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        ensemble_kd_loss(z, target, temperature=temperature).loss.backward()
        grads.append(temperature.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("space", ["logits", "probabilities"])
def test_mixing_gets_the_gradient_of_the_formula(space):
    logits, target = batch(students=2, rows=3, classes=4, dtype=torch.float64)
    mixing = learned("mixing", torch.float64, 2, 2)
    with torch.no_grad():
        mixing[0, 1] = 0.0

    def loss(mixing):
        return ensemble_kd_loss(logits, target, mixing=mixing, mixing_space=space).loss

    assert torch.autograd.gradcheck(loss, (mixing,))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("name", [*NUMBERS, "mixing"])
def test_compiled_backends_refuse_them_by_name(name, backend):
    logits, target = batch(students=3)
    message = f"backend {backend!r}: {name}: requires_grad is only supported by backend='reference'; "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.*backend='reference': supports this call"):
        ensemble_kd_loss(logits, target, backend=backend, **{name: learned(name)})
    # Without gradients, nothing is lost.
    with torch.no_grad():
        assert ensemble_kd_loss(logits, target, backend=backend, **{name: learned(name)}).loss.isfinite()


@pytest.mark.parametrize("name", [*NUMBERS, "mixing"])
def test_value_and_grad_refuses_them_by_name(name, backend):
    logits, target = batch(students=3)
    with pytest.raises(ValueError, match=f"^{name}: expected a tensor that requires no gradient, .* got requires_grad"):
        ensemble_kd_value_and_grad(logits, target, backend=backend, **{name: learned(name)})


def test_module_trains_its_temperature():
    logits, target = batch(students=3)
    temperature = torch.nn.Parameter(torch.tensor(2.0))
    criterion = EnsembleKDLoss(temperature=temperature, ce_weight=0.0, kd_weight=1.0)
    optimizer = torch.optim.SGD([temperature], lr=0.1)
    values = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = criterion(logits, target)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values == sorted(values, reverse=True) and values[-1] < values[0]
