"""Loss scaling, autocast and cuDNN's settings of a step."""

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.training.numerics import LossScaler, Numerics, automatic_precision

CPU = torch.device("cpu")


def optimizer_with_gradient(value):
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), value)
    return parameter, torch.optim.SGD([parameter], lr=1.0, fused=True)


def test_a_disabled_scaler_has_no_scale_and_no_tensors():
    parameter, optimizer = optimizer_with_gradient(0.5)
    scaler = LossScaler(CPU, enabled=False)
    assert scaler.scale() is None and scaler.tensors() == {} and scaler.state_dict() == {}
    assert not scaler.waits_for_device(optimizer)
    scaler.unscale(optimizer)
    scaler.step(optimizer)
    assert torch.equal(parameter, torch.full((2,), 0.5))


def test_gradients_are_divided_by_the_scale():
    parameter, optimizer = optimizer_with_gradient(0.5)
    scaler = LossScaler(CPU, enabled=True)
    parameter.grad *= scaler.scale()
    scaler.unscale(optimizer)
    assert torch.equal(parameter.grad, torch.full((2,), 0.5))
    scaler.step(optimizer)
    assert torch.equal(parameter, torch.full((2,), 0.5))


def test_a_gradient_that_is_not_finite_skips_the_step_and_halves_the_scale():
    parameter, optimizer = optimizer_with_gradient(float("inf"))
    scaler = LossScaler(CPU, enabled=True)
    before = scaler.scale().item()
    scaler.step(optimizer)
    assert torch.equal(parameter, torch.ones(2)) and scaler.scale().item() == before / 2


def test_a_loaded_state_keeps_the_tensors_of_the_scale():
    scaler, other = LossScaler(CPU, enabled=True), LossScaler(CPU, enabled=True)
    addresses = {name: tensor.data_ptr() for name, tensor in scaler.tensors().items()}
    other.step(optimizer_with_gradient(float("inf"))[1])
    scaler.load_state_dict(other.state_dict())
    assert {name: tensor.data_ptr() for name, tensor in scaler.tensors().items()} == addresses
    assert addresses.keys() == {"scale", "growth_tracker"} and scaler.scale() == other.scale()


def test_a_step_can_begin_after_an_abandoned_one():
    _, optimizer = optimizer_with_gradient(0.5)
    scaler = LossScaler(CPU, enabled=True)
    scaler.unscale(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale(optimizer)
    scaler.abandon_step()
    scaler.unscale(optimizer)
    scaler.step(optimizer)


def test_fused_optimizers_do_not_wait_for_the_device():
    parameter, fused = optimizer_with_gradient(0.5)
    scaler = LossScaler(CPU, enabled=True)
    assert not scaler.waits_for_device(fused)
    assert scaler.waits_for_device(torch.optim.RMSprop([parameter]))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_autocast_runs_matrix_products_in_the_precision(precision):
    x = torch.ones(2, 2)
    with Numerics.of(TrainConfig(precision=precision), CPU).autocast():
        assert (x @ x).dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


@pytest.mark.parametrize(
    ("features", "expected", "reason"),
    [
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC 9B14"}, "bf16", "the processor has AVX512-BF16"),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, "fp32", "slower with AVX512-BF16 on this processor"),
        ({"avx512_bf16": True}, "fp32", "slower with AVX512-BF16 on this processor"),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, "bf16", "the processor has AMX"),
        ({"avx512_bf16": False, "cpu_name": "AMD EPYC 7763"}, "fp32", "does not have AVX512-BF16"),
        ({}, "fp32", "does not have AVX512-BF16"),
    ],
)
def test_auto_is_bf16_on_processors_that_are_faster_in_it(features, expected, reason, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    precision, why = automatic_precision(CPU)
    assert precision == expected and reason in why
    auto, named = (Numerics.of(TrainConfig(precision=name), CPU) for name in ("auto", expected))
    assert auto == named


def test_auto_is_fp32_where_torch_does_not_list_the_features(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert automatic_precision(CPU)[0] == "fp32"


@pytest.mark.parametrize("supported", [False, True])
def test_auto_on_a_gpu_asks_for_instructions(supported, monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU {device}")
    precision, why = automatic_precision(torch.device("cuda", 0))
    assert precision == ("bf16" if supported else "fp32") and "cuda" in why
    assert automatic_precision(torch.device("mps"))[0] == "fp32"


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_settings_of_cudnn_are_restored(deterministic):
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    with pytest.raises(ValueError), Numerics("cuda", None, deterministic).algorithms():
        assert (cudnn.benchmark, cudnn.deterministic) == (not deterministic, deterministic)
        raise ValueError
    assert (cudnn.benchmark, cudnn.deterministic) == before
