"""The fused BatchNorm, residual and ReLU as ops: accuracy, reproducibility, layouts and argument validation."""

import pytest
import torch

from oekd_fast.common.op_errors import raising_value_error

from ..conftest import ISAS, needs_native
from ..support.oracle import EPSILON
from .norm_relu_calls import EPS, by_module, by_ops, in_layout, ops, plain, problem, random, same_bits, sizes

# [B, C, H, W]: fewer rows than a tile, odd sizes, one channel, many pieces of work, more channels than rows.
SHAPES = [
    *((2, channels, 5, 7) for channels in (1, 3, 16, 25, 51, 64, 130)),
    (1, 16, 1, 2),
    (2, 51, 1, 1),
    (1, 25, 3, 1),
    (8, 16, 33, 31),
    (16, 3, 63, 61),
    (128, 512, 1, 1),
]
# Means far above the standard deviation. One channel is left out because its rounding error may happen to be 0.
FAR = [(shape, offset) for shape in [(2, 25, 5, 7), (2, 130, 5, 7), (8, 16, 33, 31)] for offset in (100.0, -3000.0)]
LAYOUTS = [torch.channels_last, torch.contiguous_format]
# "add": a residual and ReLU; "relu": ReLU alone; "none": BatchNorm alone.
FORMS = ["add", "relu", "none"]
OUTPUTS = ("y", "mean", "variance", "dx", "dweight", "dbias", "dresidual")


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("shape", "offset"), [*((shape, 0.0) for shape in SHAPES), *FAR], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_errors_are_no_larger_than_those_of_pytorch_in_fp32(isa, shape, offset, form, layout, one_thread):
    given, relu = in_layout(layout, *problem(shape, residual=form == "add", offset=offset)), form != "none"
    truth, theirs = (plain(*given, dtype, relu) for dtype in (torch.float64, torch.float32))
    results = by_ops(*given, isa=isa, relu=relu)
    assert all(t.is_contiguous(memory_format=layout) for t in (results[0], results[3]))
    scales = sizes(*given, *truth[:3], relu)
    for name, ours, exact, other, size in zip(OUTPUTS, results, truth, theirs, scales, strict=False):
        came, allowed = ((t - exact).norm().item() for t in (ours, other))
        assert came <= allowed + EPSILON * size.norm().item(), f"{name}: error {came:.3g}, PyTorch's {allowed:.3g}"


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(4, 25, 9, 7), (16, 16, 32, 32)], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_backward_masks_exactly_the_outputs_that_are_zero(isa, shape, residual, layout, one_thread):
    x, weight, bias, added, _ = in_layout(layout, *problem(shape, residual=residual))
    weight[0] = bias[0] = 0  # the output of channel 0 is the residual, or 0
    y, *_, dbias = by_ops(x, weight, bias, added, torch.ones(shape), isa)[:6]
    assert torch.equal(dbias, (y > 0).sum((0, 2, 3)).float())


@needs_native
def test_the_residual_gradient_is_the_output_gradient_where_the_output_is_positive():
    given = problem((4, 19, 6, 5))
    y, *_, dresidual = by_ops(*given)
    assert torch.equal(dresidual, given[4] * (y > 0))
    x, weight, bias, _, dy = given
    _, mean, _, rstd = ops.norm_relu(x, weight, bias, given[3], EPS)
    *grads, unwanted = ops.norm_relu_backward(dy, x, y, weight, bias, mean, rstd, False)
    assert unwanted.shape == (0,)
    assert same_bits(grads, by_ops(*given)[3:6])


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES[-3:], (3, 25, 40, 40)], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_results_do_not_depend_on_threads_or_runs(isa, shape, residual, layout, threads):
    given = in_layout(layout, *problem(shape, residual=residual))
    threads(1)
    alone = by_ops(*given, isa=isa)
    assert same_bits(by_ops(*given, isa=isa), alone)
    threads(2)
    assert all(same_bits(by_ops(*given, isa=isa), alone) for _ in range(3))


@needs_native
def test_auto_is_the_widest_instruction_set():
    given = problem((4, 25, 9, 7))
    assert same_bits(by_ops(*given), by_ops(*given, isa=ISAS[0]))


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_constant_channel_gives_its_bias(layout):
    x, weight, bias, _, dy = in_layout(layout, *problem((3, 19, 5, 5), residual=False))
    x[:, 4] = 1234.567
    bias[4] = 0.25
    y, mean, variance, dx, *_ = by_ops(x, weight, bias, None, dy)
    torch.testing.assert_close(y[:, 4], torch.full_like(y[:, 4], 0.25), rtol=0, atol=1e-4)
    assert mean[4] == x[0, 4, 0, 0] and 0 <= variance[4] < 1e-6 and dx.isfinite().all()


@needs_native
@pytest.mark.parametrize("layout", ["expanded", "contiguous", "strided"])
def test_gradients_and_residuals_may_have_other_layouts(layout):
    x, weight, bias, residual, dy = problem((4, 9, 6, 5))
    if layout == "expanded":
        dy = torch.ones(4, 9, 1, 1).expand(4, 9, 6, 5)
        dense = dy.contiguous(memory_format=torch.channels_last)
        assert same_bits(by_module(x, weight, bias, residual, dy, fused=True),
                         by_module(x, weight, bias, residual, dense, fused=True))  # fmt: skip
        return
    change = {"contiguous": lambda t: t.contiguous(), "strided": lambda t: torch.cat([t, t], dim=3)[..., ::2]}[layout]
    changed = [x, weight, bias, change(residual), change(dy)]
    same = [x, weight, bias, changed[3].clone(memory_format=torch.channels_last), changed[4].clone()]
    assert same_bits(by_ops(*changed), by_ops(*same))


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": random(9, 6)}, r"x: expected \[B, C, H, W\] with C >= 1, got \[9, 6\]"),
        ({"x": random(1, 9, 1, 1)}, r"x: expected at least 2 values for each channel, got \[1, 9, 1, 1\]"),
        ({"x": random(4, 9, 6, 5).double()}, "x: expected float32 or bfloat16, got Double"),
        ({"weight": random(8)}, r"weight: expected \[9\], one number for each channel of x, got \[8\]"),
        ({"bias": random(9).double()}, "bias: expected float32, got Double"),
        (
            {"residual": random(4, 9, 6, 4)},
            r"residual: expected the shape of x, \[4, 9, 6, 5\], got \[4, 9",
        ),
        ({"residual": random(4, 9, 6, 5).half()}, "residual: expected float32, got Half"),
        (
            {"residual": random(4, 9, 6, 5), "relu": False},
            "residual: expected None where relu is false, got a tensor",
        ),
        ({"isa": "avx1024"}, "isa: expected one of auto, .*baseline on this processor, got avx1024"),
    ],
)
def test_invalid_arguments_of_forward_raise(change, message):
    given = {"x": random(4, 9, 6, 5), "weight": random(9), "bias": random(9), "residual": None, "eps": EPS, **change}
    with pytest.raises(ValueError, match=message):
        raising_value_error(ops.norm_relu)(**given)


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dy": random(4, 9, 6, 4)}, r"dy: expected the shape of x, \[4, 9, 6, 5\], got \[4, 9, 6, 4\]"),
        ({"y": random(4, 9, 6, 5).bfloat16()}, "y: expected float32, got BFloat16"),
        ({"rstd": random(1)}, r"rstd: expected \[9\], one number for each channel of x, got \[1\]"),
        ({"residual_grad": True}, "y: expected a tensor where residual_grad is true, got None"),
        ({"y": random(4, 9, 6, 5), "relu": False}, "y: expected None where relu is false, got a tensor"),
    ],
)
def test_invalid_arguments_of_backward_raise(change, message):
    x, numbers = random(4, 9, 6, 5), {name: random(9) for name in ("weight", "bias", "mean", "rstd")}
    with pytest.raises(ValueError, match=message):
        raising_value_error(ops.norm_relu_backward)(
            **{"dy": x, "x": x, "y": None, **numbers, "residual_grad": False, **change}
        )


@needs_native
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("residual", [False, True])
def test_ops_pass_opcheck(residual, layout, one_thread):
    x, weight, bias, added, dy = problem((2, 9, 4, 5), residual=residual)
    x, added, dy = (t if t is None else t.contiguous(memory_format=layout) for t in (x, added, dy))
    torch.library.opcheck(ops.norm_relu.default, (x, weight, bias, added, EPS))
    y, mean, _, rstd = ops.norm_relu(x, weight, bias, added, EPS)
    kept = y if residual else None
    torch.library.opcheck(ops.norm_relu_backward.default, (dy, x, kept, weight, bias, mean, rstd, residual))
