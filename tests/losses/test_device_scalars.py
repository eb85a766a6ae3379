"""Temperature and weights in tensors, which the device reads at each call."""

import pytest
import torch

from oekd_fast import EnsembleKDLoss, ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import ISAS, batch, op_kwargs
from ..support import oracle

pytestmark = pytest.mark.usefixtures("one_thread")

# If Triton's kernels know that the temperature is a small integer, they save exponentials, which changes the rounding.
# The temperature is a power of two, since the interpreter divides by a number in fp64, but by a tensor in fp32.
NUMBERS = {"temperature": 8.0, "ce_weight": 0.3, "kd_weight": 2.25}
MIXED = [("temperature",), ("ce_weight", "kd_weight"), tuple(NUMBERS)]


def in_tensors(names=tuple(NUMBERS), **numbers):
    """Options of which those in `names` are tensors, and the numbers in them: float32 rounds 0.3 to another number."""
    numbers = NUMBERS | numbers
    tensors = {name: torch.tensor(numbers[name]) for name in numbers}
    return {name: tensors[name] if name in names else numbers[name] for name in numbers}, {
        name: tensor.item() for name, tensor in tensors.items()
    }


def at_once(backend, **options):
    logits, target = batch(students=3)
    target[1] = -100
    output, grads = ensemble_kd_value_and_grad(logits, target, backend=backend, **options)
    return [*output, *grads]


def by_autograd(backend, *, grad_scale=None, stacked=False, **options):
    logits, target = batch(students=3)
    target[1] = -100
    leaves = [torch.stack(logits).requires_grad_()] if stacked else [z.requires_grad_() for z in logits]
    output = ensemble_kd_loss(leaves[0] if stacked else leaves, target, backend=backend, **options)
    return [*(t.detach() for t in output), *torch.autograd.grad(output.loss, leaves, grad_scale)]


def same_bits(actual, expected):
    assert len(actual) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("names", MIXED, ids="+".join)
@pytest.mark.parametrize("form", [at_once, by_autograd])
def test_tensors_give_the_bits_of_the_numbers_in_them(backend, form, names):
    given, numbers = in_tensors(names)
    scale = torch.tensor(1.5)
    same_bits(form(backend, grad_scale=scale, **given), form(backend, grad_scale=scale, **numbers))


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1, "reduction": "sum"},
        {"ensemble_weights": torch.tensor([0.5, 0.0, 0.5])},
        {"detach_ensemble": False, "ensemble_weights": torch.tensor([0.5, 0.3, 0.2])},
    ],
    ids=lambda options: "+".join(options),
)
def test_beside_other_options(backend, options):
    if backend == "native" and "detach_ensemble" in options:
        backend = "auto"  # the reference supports it
    given, numbers = in_tensors()
    for form in (at_once, by_autograd):
        same_bits(form(backend, **options, **given), form(backend, **options, **numbers))


def test_stacked_logits(backend):
    given, numbers = in_tensors()
    same_bits(by_autograd(backend, stacked=True, **given), by_autograd(backend, stacked=True, **numbers))


def test_into_buffers(backend):
    given, numbers = in_tensors()
    out = [torch.full((7, 13), float("nan")) for _ in range(3)]
    actual = at_once(backend, out=out, **given)
    same_bits(actual, at_once(backend, **numbers))
    assert all(grad is buffer for grad, buffer in zip(actual[5:], out, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 4.0, 2.5, 0.75])
def test_is_as_exact_as_naive_pytorch_at_every_temperature(backend, temperature):
    given, numbers = in_tensors(temperature=temperature)
    logits, target = batch()
    output, grads = ensemble_kd_value_and_grad(logits, target, backend=backend, **given)
    oracle.check(output, grads, logits, target, orders=4, **numbers)


def test_distillation_alone_with_a_temperature_in_a_tensor(backend):
    logits, _ = batch()
    temperature = torch.tensor(2.5)
    output, grads = ensemble_kd_value_and_grad(logits, None, temperature=temperature, ce_weight=0, backend=backend)
    oracle.check(output, grads, logits, None, temperature=2.5, ce_weight=0.0, orders=4)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_tensors_of_any_floating_dtype_and_shape_of_one_element(backend, dtype, shape):
    exact = {"temperature": 8.0, "ce_weight": 0.75, "kd_weight": 0.125}  # exact in each dtype
    given = {name: torch.full(shape, value, dtype=dtype) for name, value in exact.items()}
    same_bits(at_once(backend, **given), at_once(backend, **exact))


def test_float64_logits_take_float64_scalars():
    logits, target = batch(dtype=torch.float64)
    given = {name: torch.tensor(value, dtype=torch.float64) for name, value in NUMBERS.items()}
    output, grads = ensemble_kd_value_and_grad(logits, target, **given)
    oracle.check(output, grads, logits, target, **NUMBERS)


@pytest.mark.parametrize("form", [at_once, by_autograd])
def test_the_next_call_uses_values_that_were_changed_in_place(backend, form):
    given, _ = in_tensors()
    first = form(backend, **given)
    for changed in ({"temperature": 0.5}, {"ce_weight": 0.0}, {"kd_weight": -0.5, "temperature": 16.0}):
        for name, number in changed.items():
            given[name].fill_(number)
        actual = form(backend, **given)
        same_bits(actual, form(backend, **{name: tensor.item() for name, tensor in given.items()}))
        assert actual[0] != first[0]


def test_backward_uses_the_values_that_the_loss_has_read(backend):
    given, numbers = in_tensors()
    logits, target = batch(students=3)
    leaves = [z.requires_grad_() for z in logits]
    for upstream in (1.0, 2.5):
        loss = ensemble_kd_loss(leaves, target, backend=backend, **given).loss
        for tensor in given.values():
            tensor.add_(1.0)
        grads = torch.autograd.grad(loss, leaves, torch.tensor(upstream))
        loss = ensemble_kd_loss(leaves, target, backend=backend, **numbers).loss
        same_bits(grads, torch.autograd.grad(loss, leaves, torch.tensor(upstream)))
        for name, tensor in given.items():
            tensor.fill_(numbers[name])


def test_tensors_are_not_changed(backend):
    given, numbers = in_tensors()
    at_once(backend, **given)
    by_autograd(backend, **given)
    assert {name: tensor.item() for name, tensor in given.items()} == numbers


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_tensors_of_every_grad_mode(backend, grad_mode):
    with grad_mode():
        given, numbers = in_tensors()
        inside = at_once(backend, **given)
    expected = at_once(backend, **numbers)
    same_bits(inside, expected)
    same_bits(at_once(backend, **given), expected)
    same_bits(by_autograd(backend, **given), by_autograd(backend, **numbers))


def test_module_holds_the_tensor_it_was_given(backend):
    temperature = torch.tensor(8.0)
    module = EnsembleKDLoss(temperature=temperature, backend=backend)
    assert module.options.temperature is temperature and not module.state_dict()
    logits, target = batch(students=3)
    for number in (8.0, 0.5):
        temperature.fill_(number)
        expected = ensemble_kd_loss(logits, target, temperature=number, backend=backend).loss
        # Beside a tensor, 0.7 and 0.15 are rounded to fp32.
        assert oracle.error(module(logits, target), expected) <= 2 * oracle.EPSILON


@pytest.mark.parametrize("temperature", [2.0, 2.5])
@pytest.mark.parametrize("isa", ISAS)
def test_ops_of_every_instruction_set(isa, temperature):
    _, numbers = in_tensors(temperature=temperature)
    logits, target = batch(students=3)
    scalars = torch.tensor(list(numbers.values()))
    unread = op_kwargs(temperature=0.0, ce_weight=0.0, kd_weight=0.0, isa=isa)
    op = torch.ops.oekd_fast.ensemble_kd_value_and_grad
    *statistics, grads = op(logits, target, **unread, device_scalars=scalars)
    *expected, expected_grads = op(logits, target, **op_kwargs(**numbers, isa=isa))
    same_bits([*statistics, *grads], [*expected, *expected_grads])
    strided = torch.stack([scalars, scalars], dim=1)[:, 0]
    value = torch.ops.oekd_fast.ensemble_kd_value(logits, target, **unread, device_scalars=strided)
    same_bits(value, expected)
