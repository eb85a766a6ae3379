"""Winograd's convolutions: accuracy of the ops against fp64, argument validation, and when they replace a layer."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from oekd_fast import native
from oekd_fast.common.op_errors import raising_value_error
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.layers import winograd as layer
from oekd_fast.layers.direct_conv import conv3x3
from oekd_fast.layers.fast_module import FastSequential, use_direct_convs, use_winograd_convs
from oekd_fast.layers.winograd import RULES, takes, winograd_conv

from ..conftest import ISAS, needs_native
from ..support.oracle import EPSILON, error
from .conv_calls import CHANGES, plain, problem, random, sequential

ops = torch.ops.oekd_fast
used_here = pytest.mark.skipif(native.isa() not in RULES, reason="layers use the ops on AVX2 only")
# (B, C, K, H, W): channels of real students, every remainder of channels, odd and even sizes, one pixel, one row and
# one column, more images than pieces of a batch, blocks that end within a row, and fewer tiles than a block.
SHAPES = [
    (2, 16, 16, 32, 32),
    (3, 25, 25, 16, 16),
    (2, 19, 19, 16, 16),
    (3, 64, 64, 8, 8),
    (2, 51, 38, 8, 8),
    (20, 26, 51, 8, 8),
    (2, 16, 25, 5, 7),
    (3, 17, 31, 4, 6),
    (2, 33, 24, 9, 4),
    (5, 40, 23, 2, 2),
    (3, 48, 56, 3, 3),
    (1, 16, 16, 1, 1),
    (1, 20, 18, 1, 2),
    (2, 21, 29, 2, 1),
    (2, 16, 22, 1, 33),
    (2, 30, 16, 33, 1),
    (1, 27, 28, 33, 33),
    (1, 16, 72, 6, 70),
    (33, 16, 17, 3, 5),
    (1, 130, 16, 6, 6),
    (2, 12, 12, 9, 8),
    (3, 8, 15, 6, 6),
    (2, 23, 9, 5, 4),
]


def of_winograd(batch, channels, outputs, height, width):
    return problem(batch, channels, outputs, height, width, 3, 1)


def by_ops(x, weight, dy, isa="auto"):
    return [ops.winograd_conv(x, weight, isa=isa), *ops.winograd_conv_backward(dy, x, weight, True, True, isa=isa)]


def same_bits(got, expected):
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@needs_native
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_errors_are_no_larger_than_those_of_pytorch_in_fp32(isa, shape):
    tensors = of_winograd(*shape)
    truth = plain(*tensors, 1, torch.float64)
    theirs = [plain(*tensors, 1, torch.float32), sequential(*tensors, 1)]
    for name, got, exact, *others in zip(
        ("y", "dx", "dweight"), by_ops(*tensors, isa=isa), truth, *theirs, strict=True
    ):
        assert error(got, exact) <= max(error(other, exact) for other in others) + EPSILON, name


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_errors_on_maps_after_relu_and_small_gradients(isa):
    """Maps with a mean, and gradients of very different sizes."""
    x, weight, dy = of_winograd(8, 32, 32, 16, 16)
    tensors = (x.relu() + 1, weight / 17, dy * 1e-6 * 10 ** random(*dy.shape, seed=3))
    truth = plain(*tensors, 1, torch.float64)
    for got, other, exact in zip(by_ops(*tensors, isa=isa), plain(*tensors, 1, torch.float32), truth, strict=True):
        assert error(got, exact) <= error(other, exact) + EPSILON


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_results_for_integers_are_exact(isa):
    tensors = [t.mul(4).round() for t in of_winograd(5, 18, 23, 9, 12)]
    for got, exact in zip(by_ops(*tensors, isa=isa), plain(*tensors, 1, torch.float64), strict=True):
        assert torch.equal(got.double(), exact)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_results_do_not_depend_on_uninitialised_memory(isa):
    """Borders and the ends of rows must not be read even if the scratch memory held NaN before."""
    tensors = of_winograd(4, 19, 25, 9, 10)
    clean = by_ops(*tensors, isa=isa)
    for _ in range(3):
        by_ops(*(torch.full_like(t, float("nan")) for t in tensors), isa=isa)
        assert same_bits(by_ops(*tensors, isa=isa), clean)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_results_do_not_depend_on_the_number_of_threads(isa):
    tensors, before = of_winograd(37, 19, 16, 7, 8), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(by_ops(*tensors, isa=isa))
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(other, results[0]) for other in results[1:])


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_outputs_of_an_image_do_not_depend_on_the_batch(isa):
    x, weight, dy = of_winograd(5, 19, 20, 6, 5)
    y, dx, _ = by_ops(x, weight, dy, isa=isa)
    for i in range(len(x)):
        alone = by_ops(x[i : i + 1], weight, dy[i : i + 1], isa=isa)
        assert same_bits(alone[:2], [y[i : i + 1], dx[i : i + 1]])


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", [0, 3, 4, 8])
def test_outputs_that_are_not_finite_are_those_of_pytorch(isa, value, column):
    x, weight, _ = of_winograd(2, 19, 20, 8, 9)
    x[0, 1, 4, column] = value
    finite = ops.winograd_conv(x, weight, isa=isa).isfinite()
    assert torch.equal(finite, functional.conv2d(x, weight, padding=1).isfinite())
    assert (~finite).sum() == 20 * 3 * (3 if column in (3, 4) else 2)


@needs_native
@pytest.mark.parametrize("layout", ["NCHW", "slices", "transposed weight"])
def test_inputs_may_have_any_memory_format(layout):
    x, weight, dy = of_winograd(3, 18, 19, 8, 7)
    expected = by_ops(x, weight, dy)
    assert expected[2].is_contiguous(memory_format=torch.channels_last)
    if layout == "NCHW":
        x, weight, dy = x.contiguous(), weight.contiguous(), dy.contiguous()
    elif layout == "slices":
        x, weight, dy = (torch.stack([t, t], -1)[..., 0] for t in (x, weight, dy))
    else:
        weight = weight.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    got = by_ops(x, weight, dy)
    assert same_bits(got, expected)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in got[:2]) and got[2].is_contiguous()


@needs_native
def test_a_gradient_that_is_not_requested_is_empty():
    x, weight, dy = of_winograd(3, 16, 19, 8, 8)
    dx, dweight = ops.winograd_conv_backward(dy, x, weight, True, True)
    for wanted in ((True, False), (False, True)):
        grads = ops.winograd_conv_backward(dy, x, weight, *wanted)
        for grad, full, asked in zip(grads, (dx, dweight), wanted, strict=True):
            assert torch.equal(grad, full) if asked else grad.numel() == 0


@needs_native
def test_an_empty_batch_gives_a_zero_weight_gradient():
    x, weight, dy = (random(0, 17, 8, 8), random(16, 17, 3, 3), random(0, 16, 8, 8))
    y, dx, dweight = by_ops(x, weight, dy)
    assert y.shape == dy.shape and dx.shape == x.shape
    assert torch.equal(dweight, torch.zeros_like(weight))


@needs_native
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": torch.zeros(2, 16, 8)}, "^x: expected four dimensions, got \\[2, 16, 8\\]$"),
        ({"x": torch.zeros(2, 16, 8, 8, dtype=torch.float64)}, "^x: expected float32, got Double$"),
        ({"x": torch.zeros(2, 16, 0, 8)}, "^x: expected pixels, got \\[2, 16, 0, 8\\]$"),
        ({"weight": torch.zeros(16, 17, 3, 3)}, "^weight: expected \\[K, 16, 3, 3\\], got \\[16, 17, 3, 3\\]$"),
        ({"weight": torch.zeros(16, 16, 1, 1)}, "^weight: expected \\[K, 16, 3, 3\\], got \\[16, 16, 1, 1\\]$"),
        (
            {"weight": torch.zeros(7, 16, 3, 3)},
            "^weight: expected at least 8 channels in and out, got \\[7, 16, 3, 3\\]$",
        ),
        ({"isa": "mmx"}, "^isa: expected one of auto"),
        (
            {"dy": torch.zeros(2, 16, 8, 9)},
            "^dy: expected the output's shape \\[2, 16, 8, 8\\], got \\[2, 16, 8, 9\\]$",
        ),
    ],
)
def test_invalid_arguments_raise(change, text):
    given = {"x": torch.zeros(2, 16, 8, 8), "weight": torch.zeros(16, 16, 3, 3), "isa": "auto"} | change
    dy = given.pop("dy", torch.zeros(2, 16, 8, 8))
    isa = given.pop("isa")
    with pytest.raises((TypeError, ValueError), match=text):
        raising_value_error(ops.winograd_conv_backward)(dy, *given.values(), True, True, isa=isa)


@needs_native
@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_ops_pass_opcheck(form):
    x, weight, dy = (t.contiguous(memory_format=form) for t in of_winograd(2, 16, 17, 6, 5))
    torch.library.opcheck(ops.winograd_conv.default, (x, weight))
    torch.library.opcheck(ops.winograd_conv_backward.default, (dy, x, weight, True, form == torch.channels_last))


@needs_native
def test_operations_are_those_of_the_definition():
    x, weight, dy = of_winograd(2, 16, 17, 6, 5)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    totals = []
    for forward in (layer._WinogradConv.apply, lambda *given: functional.conv2d(*given, padding=1)):
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(forward(*leaves), leaves, dy)
        totals.append(counter.get_total_flops())
    assert totals == [3 * 2 * 9 * 16 * 17 * 2 * 6 * 5] * 2


def by_layer(forward, conv, x, dy):
    leaf = x.clone().requires_grad_()
    y = forward(conv, leaf)
    return [y.detach(), *torch.autograd.grad(y, [leaf, conv.weight], dy)]


@needs_native
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_layer_gives_the_results_of_the_ops(layout):
    x, weight, dy = (t.contiguous(memory_format=layout) for t in of_winograd(6, 16, 19, 16, 16))
    conv = conv3x3(16, 19).to(memory_format=torch.channels_last)
    conv.load_state_dict({"weight": weight})
    assert same_bits(by_layer(winograd_conv, conv, x, dy), by_ops(x, weight, dy))


@needs_native
@pytest.mark.parametrize("enabled", [True, False])
def test_a_module_prefers_winograd_if_it_is_enabled(enabled, monkeypatch):
    monkeypatch.setattr(layer, "_rule_here", lambda: RULES["avx2"])
    x, weight, _ = of_winograd(64, 19, 19, 16, 16)
    module = FastSequential(conv3x3(19, 19))
    module[0].load_state_dict({"weight": weight})
    use_direct_convs(module)
    use_winograd_convs(module)
    use_winograd_convs(module, enabled)
    assert torch.equal(module(x), ops.winograd_conv(x, weight)) is enabled


def test_winograd_is_off_by_default():
    conv, x = conv3x3(16, 16), random(64, 16, 16, 16)
    assert torch.equal(FastSequential(conv)(x), conv(x))


@needs_native
def test_a_compiled_module_gives_the_same_gradients(monkeypatch):
    monkeypatch.setattr(layer, "_rule_here", lambda: RULES["avx2"])
    x, weight, _ = of_winograd(32, 16, 16, 16, 16)
    module = FastSequential(conv3x3(16, 16))
    use_winograd_convs(module)
    results = []
    for form in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
        results.append(torch.autograd.grad(form(x).square().mean(), list(module.parameters())))
    assert same_bits(*results)


@pytest.mark.parametrize(
    "change",
    [
        "nothing",
        "contiguous",
        "evaluation",
        "float64",
        "autocast",
        "few tiles",
        "small map",
        "no rule",
        "stride",
        "1x1",
    ],
)
def test_the_ops_need_training_in_float32_and_large_maps(change, monkeypatch):
    monkeypatch.setattr(layer, "_rule_here", lambda: None if change == "no rule" else RULES["avx2"])
    conv, x = conv3x3(19, 19, 2 if change == "stride" else 1), random(64, 19, 16, 16)
    if change == "evaluation":
        conv.eval()
    elif change == "contiguous":
        x = x.contiguous()
    elif change == "few tiles":
        x = random(7, 19, 16, 16)
    elif change == "small map":
        x = random(512, 19, 5, 16)
    elif change == "1x1":
        conv = nn.Conv2d(19, 19, 1, bias=False)
    elif change == "float64":
        conv, x = conv.double(), x.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        assert takes(conv, x) is (change in ("nothing", "contiguous"))


@pytest.mark.parametrize(
    "shape", [(11, 16), (16, 11), (129, 16), (16, 129), (15, 15), (12, 16), (16, 12), (128, 128), (51, 38)], ids=str
)
def test_the_ops_are_used_only_where_they_are_faster(shape, monkeypatch):
    monkeypatch.setattr(layer, "_rule_here", lambda: RULES["avx2"])
    channels, outputs = shape
    expected = 12 <= min(shape) and 16 <= max(shape) <= 128
    assert takes(conv3x3(channels, outputs), random(16, channels, 16, 16)) is expected


@pytest.mark.parametrize("change", CHANGES)
def test_the_ops_do_not_replace_a_layer_that_was_changed(change, monkeypatch):
    monkeypatch.setattr(layer, "_rule_here", lambda: RULES["avx2"])
    conv, x = conv3x3(16, 16), random(32, 16, 16, 16)
    assert takes(conv, x)
    conv = CHANGES[change](conv) or conv
    assert not takes(conv, x)


@needs_native
def test_a_second_derivative_raises():
    conv, x = conv3x3(16, 16), random(2, 16, 8, 8).requires_grad_()
    with pytest.raises(
        RuntimeError, match="winograd_conv: the Winograd form is differentiable once.*use_winograd_convs"
    ):
        torch.autograd.grad(winograd_conv(conv, x).sum(), x, create_graph=True)


@pytest.mark.slow
@used_here
def test_gradients_of_a_family_are_accurate():
    """The median error through all layers is at most twice that of PyTorch; single ops have their bound above."""
    torch.manual_seed(0)
    family = build_ensemble("resnet20", 2, 10).to(memory_format=torch.channels_last)
    images = random(32, 3, 32, 32)

    def gradients(enabled, dtype=torch.float32):
        copied = copy.deepcopy(family).to(dtype)
        use_winograd_convs(copied, enabled)
        sum(z.square().mean() for z in copied(images.to(dtype)).logits).backward()
        return [p.grad.double() for p in copied.network_parameters()]

    truth = gradients(False, torch.float64)
    # The largest error is compared with a constant, because rounding decides the sign of outputs near 0.
    winograd, theirs = (
        sorted(error(ours, exact) for ours, exact in zip(gradients(form), truth, strict=True)) for form in (True, False)
    )
    assert winograd[len(truth) // 2] <= 2 * theirs[len(truth) // 2] and winograd[-1] < 0.05
