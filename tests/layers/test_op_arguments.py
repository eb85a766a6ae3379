"""Memory and devices of the tensors that the ops of the layers are called with; wrong ones raise and crash nothing."""

import math

import pytest
import torch
from torch import nn

import oekd_fast.losses.feature_native  # noqa: F401 - defines ops
from oekd_fast.layers.fast_module import use_fused_norms

from ..conftest import needs_native
from .norm_relu_calls import EPS, NormReLU, ops, random

pytestmark = needs_native

X, DY, NUMBERS = random(2, 5, 6, 6), random(2, 7, 6, 6), random(5)
CALLS = {
    "norm_relu": {"x": X, "weight": NUMBERS, "bias": NUMBERS, "residual": X, "eps": EPS},
    "norm_relu_with": {
        "x": X, "weight": NUMBERS, "bias": NUMBERS, "residual": X, "mean": NUMBERS, "variance": NUMBERS.abs(),
        "eps": EPS,
    },
    "norm_relu_backward": {
        "dy": X, "x": X, "y": X, "weight": NUMBERS, "bias": NUMBERS, "mean": NUMBERS, "rstd": NUMBERS,
        "residual_grad": True,
    },
    "direct_conv": {"x": X, "weight": random(7, 5, 3, 3), "stride": 1},
    "direct_conv_backward": {
        "dy": DY, "x": X, "weight": random(7, 5, 3, 3), "stride": 1, "input_grad": True, "weight_grad": True,
    },
    "winograd_conv": {"x": random(2, 17, 6, 6), "weight": random(16, 17, 3, 3)},
    "winograd_conv_backward": {
        "dy": random(2, 16, 6, 6), "x": random(2, 17, 6, 6), "weight": random(16, 17, 3, 3), "input_grad": True,
        "weight_grad": True,
    },
    "feature_kd_student": {
        "map": X, "teacher": random(2, 7, 6, 6), "weight": random(7, 5), "bias": random(7), "grad_scale": random(1),
    },
}  # fmt: skip
TENSORS = [
    (op, name) for op, given in CALLS.items() for name, value in given.items() if isinstance(value, torch.Tensor)
]


def call(op, **changed):
    return getattr(ops, op)(**CALLS[op] | changed)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("op, name", TENSORS)
def test_a_storage_that_is_too_small_raises(op, name, layout):
    tensor = CALLS[op][name]
    needed = 4 * tensor.numel()
    for left in (0, needed - 4):
        small = tensor.clone(memory_format=layout if tensor.dim() == 4 else torch.contiguous_format)
        small.untyped_storage().resize_(left)
        with pytest.raises(ValueError, match=f"^{name}: expected a storage of at least {needed} bytes, got {left}$"):
            call(op, **{name: small})


@pytest.mark.parametrize("op, name", TENSORS)
def test_a_tensor_on_the_meta_device_raises(op, name):
    """Torch calls the fake implementation for these, which would return uninitialised memory."""
    with pytest.raises(ValueError, match=r"^\w+: expected device (cpu|meta) as \w+, got (meta|cpu)$"):
        call(op, **{name: CALLS[op][name].to("meta")})


@pytest.mark.parametrize("op", CALLS)
def test_tensors_that_are_all_on_the_meta_device_give_shapes(op):
    meta = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in CALLS[op].items()}
    results, expected = call(op, **meta), call(op)
    for result, t in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (results, expected)), strict=True):
        assert result.device.type == "meta" and (result.shape, result.stride()) == (t.shape, t.stride())


# The dtypes beside float32 that an argument may have; the others are float32.
OTHER_DTYPES = {
    ("norm_relu", "x"): (torch.bfloat16,),
    ("norm_relu_with", "x"): (torch.bfloat16,),
    ("norm_relu_backward", "x"): (torch.bfloat16,),
    ("feature_kd_student", "map"): (torch.bfloat16,),
    ("feature_kd_student", "teacher"): (torch.bfloat16,),
    ("feature_kd_student", "weight"): (torch.bfloat16, torch.float16),
    ("feature_kd_student", "bias"): (torch.bfloat16, torch.float16),
}


@pytest.mark.parametrize("op, name", [pair for pair in TENSORS if pair[1] != "grad_scale"])
def test_other_dtypes_dimensions_and_layouts_raise(op, name):
    tensor, others = CALLS[op][name], OTHER_DTYPES.get((op, name), ())
    expected = ("float32", "float32 or bfloat16", "float32, bfloat16 or float16")[len(others)]
    types = (torch.float64, torch.float16, torch.int64, torch.complex64, torch.bfloat16)
    for wrong in (tensor.to(dtype) for dtype in types if dtype not in others):
        with pytest.raises(ValueError, match=f"^{name}: expected {expected}, got "):
            call(op, **{name: wrong})
    for wrong in (tensor[None], tensor[0]):
        with pytest.raises(ValueError, match=f"^{name}: expected "):
            call(op, **{name: wrong})
    with pytest.raises((NotImplementedError, RuntimeError)):
        call(op, **{name: tensor.to_sparse()})


@pytest.mark.parametrize("eps", [0.0, -1e-5, math.nan, math.inf, -math.inf])
def test_an_invalid_eps_raises(eps):
    with pytest.raises(ValueError, match=f"^eps: expected a finite number > 0, got {eps:g}$"):
        call("norm_relu", eps=eps)


@pytest.mark.parametrize("stride", [-1, 0, 3, 2**40])
def test_an_invalid_stride_raises(stride):
    for op in ("direct_conv", "direct_conv_backward"):
        with pytest.raises(ValueError, match=f"^stride: expected 1 or 2, got {stride}$"):
            call(op, stride=stride)


def test_sizes_that_overflow_raise():
    one = torch.zeros(1, 1, 1, 1)
    huge = [
        ("norm_relu", {"x": one.expand(2, 2**40, 8, 8), "weight": one.view(1).expand(2**40), "residual": None}),
        ("norm_relu", {"x": one[:0].expand(0, 5, 2**31, 2**31), "residual": None}),
        ("direct_conv", {"x": one.expand(1, 1, 2**31, 2**31 - 2), "weight": one}),
        ("direct_conv", {"x": one[:0].expand(0, 2**31, 4, 4), "weight": one.expand(2**31, 2**31, 1, 1)}),
        ("winograd_conv", {"x": one.expand(1, 16, 2**29, 2**29), "weight": one.expand(16, 16, 3, 3)}),
        ("winograd_conv", {"x": one[:0].expand(0, 2**29, 4, 4), "weight": one.expand(2**30, 2**29, 3, 3)}),
    ]
    for op, changed in huge:
        with pytest.raises((RuntimeError, ValueError, MemoryError)):
            call(op, **changed)


def test_parameters_on_the_meta_device_raise_in_the_module():
    module = NormReLU(5)
    use_fused_norms(module)
    module.norm.weight = nn.Parameter(module.norm.weight.to("meta"))
    with pytest.raises(ValueError, match="^weight: expected device cpu as x, got meta$"):
        module(X)
