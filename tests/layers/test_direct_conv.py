"""Direct convolutions: accuracy of the ops against fp64, argument validation, and when they replace a layer."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from oekd_fast import native
from oekd_fast.common.op_errors import raising_value_error
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.layers import direct_conv as layer
from oekd_fast.layers.direct_conv import RULES, conv3x3, direct_conv, takes
from oekd_fast.layers.fast_module import FastSequential, use_direct_convs, use_fused_norms
from oekd_fast.training.backward import run_base

from ..conftest import ISAS, needs_native
from ..support.oracle import EPSILON, error
from .conv_calls import CHANGES, plain, problem, random, sequential

ops = torch.ops.oekd_fast
used_here = pytest.mark.skipif(native.isa() not in RULES, reason="layers use the ops on AVX2 and AVX-512 only")
# (B, C, K, H, W, side, stride): channels of real students, every remainder of channels and columns, one pixel, more
# images than are summed together, odd sizes with stride 2, wide rows, rows that fill few vectors, and rows one pixel
# shorter and longer than vectors.
SHAPES = [
    (2, 3, 16, 32, 32, 3, 1),
    (3, 9, 9, 28, 28, 3, 1),
    (40, 19, 19, 16, 16, 3, 1),
    (5, 16, 25, 16, 16, 3, 2),
    (4, 12, 6, 7, 7, 3, 1),
    (4, 7, 5, 7, 9, 3, 2),
    (33, 51, 38, 8, 8, 3, 1),
    (3, 8, 2, 5, 9, 3, 2),
    (3, 10, 11, 6, 13, 1, 1),
    (3, 13, 1, 7, 9, 1, 2),
    (2, 1, 10, 1, 1, 3, 1),
    (1, 2, 4, 1, 1, 3, 2),
    (2, 4, 4, 2, 2, 3, 2),
    (1, 17, 18, 3, 70, 3, 1),
    (3, 5, 8, 28, 28, 3, 2),
    (2, 6, 4, 9, 4, 1, 1),
    (130, 2, 3, 3, 3, 3, 1),
    (2, 4, 19, 5, 33, 3, 1),
    (2, 3, 10, 31, 17, 3, 2),
    (20, 6, 27, 16, 15, 3, 1),
    (2, 11, 12, 4, 16, 1, 1),
    (9, 5, 28, 3, 48, 1, 2),
]


def by_ops(x, weight, dy, stride, isa="auto"):
    grads = ops.direct_conv_backward(dy, x, weight, stride, True, True, isa=isa)
    return [ops.direct_conv(x, weight, stride, isa=isa), *grads]


@needs_native
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_errors_are_no_larger_than_those_of_pytorch_in_fp32(isa, shape):
    *tensors, stride = *problem(*shape), shape[-1]
    truth = plain(*tensors, stride, torch.float64)
    theirs = [plain(*tensors, stride, torch.float32), sequential(*tensors, stride)]
    for name, got, exact, *others in zip(
        ("y", "dx", "dweight"), by_ops(*tensors, stride, isa=isa), truth, *theirs, strict=True
    ):
        assert error(got, exact) <= max(error(other, exact) for other in others) + EPSILON, name


@needs_native
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_contiguous_inputs_give_the_same_bits(isa, shape):
    x, weight, dy = problem(*shape)
    expected = by_ops(x, weight, dy, shape[-1], isa=isa)
    assert expected[0].is_contiguous() and expected[1].is_contiguous(memory_format=torch.channels_last)
    got = by_ops(x.contiguous(), weight, dy.contiguous(), shape[-1], isa=isa)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert got[0].is_contiguous() and got[1].is_contiguous()


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_results_for_integers_are_exact(isa):
    x, weight, dy = (t.mul(4).round() for t in problem(5, 11, 7, 9, 12, 3, 1))
    for got, exact in zip(by_ops(x, weight, dy, 1, isa=isa), plain(x, weight, dy, 1, torch.float64), strict=True):
        assert torch.equal(got.double(), exact)


@needs_native
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("isa", ISAS)
def test_results_do_not_depend_on_uninitialised_memory(isa, layout):
    """Borders must be 0 even if the scratch memory held NaN before."""
    tensors = [t.contiguous(memory_format=layout) for t in problem(4, 9, 6, 10, 10, 3, 2)]
    clean = by_ops(*tensors, 2, isa=isa)
    for _ in range(3):
        by_ops(*(torch.full_like(t, float("nan")) for t in tensors), 2, isa=isa)
        assert all(torch.equal(a, b) for a, b in zip(by_ops(*tensors, 2, isa=isa), clean, strict=True))


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_results_do_not_depend_on_the_number_of_threads(isa):
    tensors, before = problem(37, 9, 9, 16, 16, 3, 1), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(by_ops(*tensors, 1, isa=isa))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("column", [0, 4, 7])
def test_nan_propagates_as_in_pytorch(isa, column):
    x, weight, _ = problem(2, 3, 4, 8, 8, 3, 1)
    x[0, 1, 4, column] = float("nan")
    y = ops.direct_conv(x, weight, 1, isa=isa)
    assert torch.equal(y.isnan(), functional.conv2d(x, weight, padding=1).isnan())
    assert y.isnan().sum() == 4 * 3 * (3 if column == 4 else 2)


@needs_native
@pytest.mark.parametrize("layout", ["NCHW", "channels_last", "slices"])
def test_inputs_may_have_any_memory_format(layout):
    x, weight, dy = problem(3, 6, 9, 8, 8, 3, 1)
    expected = by_ops(x, weight, dy, 1)
    if layout == "NCHW":
        x, weight, dy = x.contiguous(), weight.contiguous(), dy.contiguous()
    elif layout == "slices":
        x, weight, dy = (torch.stack([t, t], -1)[..., 0] for t in (x, weight, dy))
    got = by_ops(x, weight, dy, 1)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert got[0].is_contiguous()


@needs_native
def test_a_gradient_that_is_not_requested_is_empty():
    x, weight, dy = problem(3, 6, 9, 8, 8, 3, 1)
    dx, dweight = ops.direct_conv_backward(dy, x, weight, 1, True, True)
    for wanted in ((True, False), (False, True)):
        grads = ops.direct_conv_backward(dy, x, weight, 1, *wanted)
        for grad, full, asked in zip(grads, (dx, dweight), wanted, strict=True):
            assert torch.equal(grad, full) if asked else grad.numel() == 0


@needs_native
def test_an_empty_batch_gives_a_zero_weight_gradient():
    x, weight, dy = (random(0, 5, 8, 8), random(7, 5, 3, 3), random(0, 7, 8, 8))
    y, dx, dweight = by_ops(x, weight, dy, 1)
    assert y.shape == dy.shape and dx.shape == x.shape
    assert torch.equal(dweight, torch.zeros_like(weight))


@needs_native
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": torch.zeros(2, 4, 8)}, "x: expected four dimensions, got \\[2, 4, 8\\]"),
        ({"x": torch.zeros(2, 4, 8, 8, dtype=torch.float64)}, "x: expected float32, got Double"),
        ({"weight": torch.zeros(3, 5, 3, 3)}, "weight: expected \\[K, 4, side, side\\].*got \\[3, 5, 3, 3\\]"),
        ({"weight": torch.zeros(3, 4, 5, 5)}, "side 1 or 3"),
        ({"stride": 3}, "stride: expected 1 or 2, got 3"),
        ({"isa": "mmx"}, "isa: expected one of auto"),
        ({"dy": torch.zeros(2, 3, 8, 9)}, "dy: expected the output's shape \\[2, 3, 8, 8\\], got \\[2, 3, 8, 9\\]"),
    ],
)
def test_invalid_arguments_raise(change, text):
    given = {"x": torch.zeros(2, 4, 8, 8), "weight": torch.zeros(3, 4, 3, 3), "stride": 1, "isa": "auto"} | change
    dy = given.pop("dy", torch.zeros(2, 3, 8, 8))
    isa = given.pop("isa")
    with pytest.raises((TypeError, ValueError), match=text):
        raising_value_error(ops.direct_conv_backward)(dy, *given.values(), True, True, isa=isa)


@needs_native
def test_ops_pass_opcheck():
    x, weight, dy = problem(2, 5, 7, 8, 8, 3, 2)
    for given in (x, x.contiguous()):
        torch.library.opcheck(ops.direct_conv.default, (given, weight, 2))
        torch.library.opcheck(ops.direct_conv_backward.default, (dy, given, weight, 2, True, False))


def by_layer(conv, x, dy, direct, every=1):
    leaf = x.clone().requires_grad_()
    y = direct_conv(conv, leaf, direct=direct, every=every)
    return [y.detach(), *torch.autograd.grad(y, [leaf, conv.weight], dy)]


@used_here
@pytest.mark.parametrize("stride", [1, 2])
def test_a_layer_is_no_less_accurate_than_pytorch(stride):
    x, weight, dy = problem(6, 9, 19, 16, 16, 3, stride)
    conv = conv3x3(9, 19, stride).to(memory_format=torch.channels_last)
    conv.load_state_dict({"weight": weight})
    theirs, ours = (by_layer(conv, x, dy, direct) for direct in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(ours, by_ops(x, conv.weight.detach(), dy, stride), strict=True))
    truth = plain(x, weight, dy, stride, torch.float64)
    for got, other, exact in zip(ours, theirs, truth, strict=True):
        assert error(got, exact) <= error(other, exact) + EPSILON


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("every", [1, 2])
@used_here
def test_a_1x1_convolution_takes_every_pixel_or_every_second(every, layout):
    x, weight, dy = problem(6, 9, 19, 32, 33, 1, every)
    x = x.contiguous(memory_format=layout)
    conv = nn.Conv2d(9, 19, 1, bias=False)
    conv.load_state_dict({"weight": weight})
    assert takes(conv, x, every)
    theirs, ours = (by_layer(conv, x, dy, direct, every) for direct in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(ours, by_ops(x, conv.weight.detach(), dy, every), strict=True))
    truth = plain(x, weight, dy, every, torch.float64)
    for got, other, exact in zip(ours, theirs, truth, strict=True):
        assert error(got, exact) <= error(other, exact) + EPSILON


def test_only_a_1x1_convolution_takes_every_second_pixel(monkeypatch):
    monkeypatch.setattr(layer, "_rule_here", lambda: RULES["avx512"])
    x = random(2, 9, 64, 64)
    assert takes(conv3x3(9, 9), x) and not takes(conv3x3(9, 9), x, 2)
    assert takes(nn.Conv2d(9, 9, 1, bias=False), x, 2) and not takes(nn.Conv2d(9, 9, 1, bias=False), x, 3)
    assert not takes(nn.Conv2d(9, 9, 1, stride=2, bias=False), x, 2)


@pytest.mark.parametrize("change", ["nothing", "contiguous", "evaluation", "sliced", "float64", "autocast", "no rule"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_ops_need_training_in_float32_and_dense_maps(rule, change, monkeypatch):
    monkeypatch.setattr(layer, "_rule_here", lambda: None if change == "no rule" else rule)
    conv, x = conv3x3(9, 9), random(2, 9, 16, 16)
    if change == "evaluation":
        conv.eval()
    elif change == "contiguous":
        x = x.contiguous()
    elif change == "sliced":
        x = random(2, 9, 16, 32)[..., ::2]
    elif change == "float64":
        conv, x = conv.double(), x.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        assert takes(conv, x) is (change in ("nothing", "contiguous"))


# (channels, outputs, stride, width of the input): instruction sets whose rule takes the shape.
TAKEN = {
    (9, 9, 1, 32): {"avx2", "avx512"},
    (25, 25, 1, 16): {"avx2", "avx512"},
    (12, 25, 2, 32): {"avx2", "avx512"},
    (9, 19, 2, 16): {"avx2", "avx512"},
    (12, 12, 1, 8): {"avx2"},  # narrow rows, and more than few channels
    (6, 6, 1, 7): {"avx2"},  # narrower rows
    (20, 20, 1, 8): set(),
    (6, 6, 1, 5): set(),
    (12, 16, 1, 16): {"avx512"},
    (13, 15, 1, 16): set(),  # little padding
    (23, 23, 1, 16): {"avx512"},  # little padding to multiples of 8
    (16, 16, 1, 32): set(),
    (26, 9, 1, 32): set(),  # too many channels
}


@pytest.mark.parametrize("shape", TAKEN, ids=str)
@pytest.mark.parametrize("isa", RULES)
def test_the_ops_are_used_only_where_they_are_faster(isa, shape, monkeypatch):
    monkeypatch.setattr(layer, "_rule_here", lambda: RULES[isa])
    channels, outputs, stride, width = shape
    assert takes(conv3x3(channels, outputs, stride), random(2, channels, 3, width)) is (isa in TAKEN[shape])


def test_the_direct_form_is_off_by_default():
    conv, x = conv3x3(9, 9), random(2, 9, 16, 16)
    assert torch.equal(direct_conv(conv, x), conv(x))


@pytest.mark.parametrize("change", CHANGES)
def test_the_ops_do_not_replace_a_layer_that_was_changed(change):
    conv = conv3x3(9, 9)
    conv = CHANGES[change](conv) or conv
    assert not takes(conv, random(2, 9, 16, 16))


@used_here
def test_a_second_derivative_raises_in_the_direct_form():
    conv, x = conv3x3(9, 9), random(2, 9, 8, 8).requires_grad_()
    with pytest.raises(RuntimeError, match="direct_conv: the direct form is differentiable once"):
        torch.autograd.grad(direct_conv(conv, x, direct=True).sum(), x, create_graph=True)


@needs_native
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_several_students_read_a_map_of_the_direct_form_as_its_rule_says(rule, direct, monkeypatch):
    monkeypatch.setattr(layer, "_rule_here", lambda: RULES[rule])
    base = FastSequential(conv3x3(3, 9), nn.BatchNorm2d(9), nn.ReLU())
    use_fused_norms(base)
    use_direct_convs(base, direct)
    images = random(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    shared, plain = run_base(base, images), base(images)
    assert torch.equal(shared, plain)
    assert shared.is_contiguous(memory_format=torch.channels_last) is (not direct or RULES[rule].shares_pixels)
    grads = [torch.autograd.grad(y.square().sum(), list(base.parameters())) for y in (shared, plain)]
    assert all(map(torch.equal, *grads))


@pytest.mark.slow
@used_here
def test_gradients_of_a_family_are_accurate():
    """The median error through all layers is at most twice that of PyTorch; single ops have a tighter bound above."""
    torch.manual_seed(0)
    family = build_ensemble("resnet20", 5, 10).to(memory_format=torch.channels_last)
    images = random(8, 3, 32, 32)

    def gradients(direct, dtype=torch.float32):
        copied = copy.deepcopy(family).to(dtype)
        use_direct_convs(copied, direct)
        sum(z.square().mean() for z in copied(images.to(dtype)).logits).backward()
        return [p.grad.double() for p in copied.network_parameters()]

    truth = gradients(False, torch.float64)
    # The largest error is compared with a constant, because rounding decides the sign of outputs near 0.
    direct, plain = (
        sorted(error(ours, exact) for ours, exact in zip(gradients(form), truth, strict=True)) for form in (True, False)
    )
    assert direct[len(truth) // 2] <= 2 * plain[len(truth) // 2] and direct[-1] < 0.05
