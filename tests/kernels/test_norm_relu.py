"""Triton kernels of BatchNorm, residual and ReLU: on a GPU if there is one, else in Triton's interpreter.

Small blocks make several programs of a tiny map, with tiles that are not full and, if a block is shorter than a row,
several columns.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from oekd_fast.kernels.norm_relu import launch as kernels
from oekd_fast.kernels.norm_relu.plan import BLOCK, VECTOR, plan_norm_relu

from ..layers.norm_relu_calls import EPS, in_bf16, plain, problem, same_bits, sizes
from ..support import oracle

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OUTPUTS = ("y", "mean", "variance", "dx", "dweight", "dbias", "dresidual")


def run(x, weight, bias, residual, dy, *, relu=True, block=64, again=False):
    """Return y, mean, variance, dx, dweight, dbias, dresidual on the CPU; with `again`, those of a second run."""
    x, weight, bias, residual, dy = (t if t is None else t.to(DEVICE) for t in (x, weight, bias, residual, dy))
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    plan = plan_norm_relu(rows, channels, x.element_size(), block=block)
    (y, mean, variance, rstd), launches = kernels.forward_launches(x, weight, bias, residual, EPS, relu, plan)
    kept = None if residual is None else y
    grads, backward = kernels.backward_launches(dy, x, kept, weight, bias, mean, rstd, residual is not None, relu, plan)
    for launch in (launches + backward) * (1 + again):
        launch.run(DEVICE)
        assert not launch.arguments.get("done", torch.zeros(1)).any()
    return [t.cpu() for t in (y, mean, variance, *grads)][: 6 + (residual is not None)]


def check(given, relu=True, of_mean=torch.mean, **options):
    """Check that no error is larger than that of PyTorch in float32, but for the rounding of maps in bfloat16.

    The rounding of a mean is compared with `of_mean` of the absolute values.
    """
    results = run(*given, relu=relu, **options)
    truth, theirs = (plain(*given, dtype, relu) for dtype in (torch.float64, torch.float32))
    scales = sizes(*given, *truth[:3], relu, of_mean)
    for name, ours, exact, other, size in zip(OUTPUTS, results, truth, theirs, scales, strict=False):
        error = (ours - exact).abs()
        if ours.dtype == torch.bfloat16:
            error = (error - torch.from_numpy(oracle.half_ulp(exact.numpy(), torch.bfloat16))).clamp(min=0)
        came, allowed = error.norm().item(), (other - exact).norm().item()
        assert came <= allowed + oracle.EPSILON * size.norm().item(), f"{name}: {came:.3g}, PyTorch's {allowed:.3g}"


CASES = {
    "unaligned rows, three programs": dict(shape=(2, 9, 5, 7), residual=True, block=256),
    "mean far above the deviation": dict(shape=(2, 12, 4, 4), residual=False, block=128, offset=-3000.0),
    "a row in two columns": dict(shape=(2, 40, 2, 2), residual=True, block=32, offset=100.0),
    "without ReLU": dict(shape=(2, 16, 3, 4), residual=False, block=128, relu=False),
    "one channel, one program": dict(shape=(1, 1, 1, 2), residual=False, block=BLOCK),
    "bfloat16": dict(shape=(2, 9, 4, 6), residual=True, block=256, dtype=torch.bfloat16),
    "bfloat16 without residual": dict(shape=(2, 16, 3, 4), residual=False, block=256, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_are_no_larger_than_those_of_pytorch(case):
    options = {"dtype": torch.float32, "relu": True, "offset": 0.0, **CASES[case]}
    given = problem(options["shape"], residual=options["residual"], offset=options["offset"])
    check(in_bf16(*given) if options["dtype"] == torch.bfloat16 else given, options["relu"], block=options["block"])


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(128, 16, 32, 32), (128, 9, 32, 32), (128, 57, 8, 8), (64, 2100, 7, 7)], ids=str)
def test_maps_of_networks(shape, residual):
    given = problem(shape, residual=residual, offset=3.0)
    check(given, block=BLOCK)
    check(in_bf16(*given), block=BLOCK)


def test_a_launch_can_run_again():
    # A captured graph runs its launches again, so the counters must be zero after each run.
    given = problem((1, 9, 3, 3), residual=False)
    assert same_bits(run(*given), run(*given, again=True))


def test_an_outlier_in_the_first_row_is_rounded_like_the_largest_value():
    given = problem((2, 5, 4, 4), residual=False)
    given[0][0, :, 0, 0] = 3e4
    check(given, of_mean=torch.amax, block=128)


def test_channels_of_zeros_stay_zero():
    """Padded channels have a weight and a bias of 0; the other channels do not notice them."""
    x, weight, bias, residual, dy = problem((2, 8, 3, 3))
    for t in (x, residual):
        t[:, 5:] = 0
    weight[5:] = bias[5:] = 0
    y, mean, variance, dx, dweight, dbias, dresidual = run(x, weight, bias, residual, dy, block=128)
    for t in (y, dx, dresidual):
        assert not t[:, 5:].any() and t[:, :5].any()
    for t in (mean, variance, dweight, dbias):
        assert not t[5:].any() and t[:5].all()


@pytest.mark.parametrize("residual", [False, True])
def test_backward_masks_exactly_the_outputs_that_are_zero(residual):
    x, weight, bias, added, _ = in_bf16(*problem((2, 9, 4, 4), residual=residual))
    weight[0] = bias[0] = 0  # the output of channel 0 is the residual, or 0
    weight[1], bias[1] = 1e-38, 0  # outputs of channel 1 are near the least positive number of bfloat16
    y, *_, dbias = run(x, weight, bias, added, torch.ones_like(x), block=256)[:6]
    assert torch.equal(dbias, (y > 0).sum((0, 2, 3)).float())


def test_the_ops_take_other_layouts_and_give_channels_last():
    x, weight, bias, residual, dy = problem((2, 3, 4, 4))
    expected = run(x, weight, bias, residual, dy, block=BLOCK)
    x, weight, bias, residual, dy = (t.to(DEVICE) for t in (x, weight, bias, residual, dy))
    numbers = (torch.stack([t, t], 1)[:, 0] for t in (weight, bias))
    y, mean, variance, rstd = kernels.norm_relu(x.contiguous(), *numbers, residual.contiguous(), EPS)
    sliced = torch.cat([dy, dy], 3)[..., :4]
    *grads, dresidual = kernels.norm_relu_backward(sliced, x.contiguous(), y, weight, bias, mean, rstd, True)
    assert same_bits([t.cpu() for t in (y, mean, variance, *grads, dresidual)], expected)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (y, grads[0], dresidual))


X, NUMBERS = torch.zeros(2, 3, 4, 4, device=DEVICE), torch.zeros(3, device=DEVICE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.double()}, "x: expected float32 or bfloat16, got torch.float64"),
        ({"x": X[0]}, r"x: expected \[B, C, H, W\] with C >= 1, got \[3, 4, 4\]"),
        ({"x": X[:1, :, :1, :1]}, r"x: expected 2 to \d+ values for each channel, got \[1, 3, 1, 1\]"),
        ({"residual": X.bfloat16()}, r"residual: expected torch.float32 \[2, 3, 4, 4\] on .* as x, got torch.bfloat16"),
        ({"residual": X[:1]}, r"residual: expected .* got torch.float32 \[1, 3, 4, 4\]"),
        ({"bias": NUMBERS[:2]}, r"bias: expected float32 \[3\] on .*, one number for each channel of x, got .* \[2\]"),
        ({"weight": NUMBERS.to("meta")}, r"weight: expected .* got torch.float32 \[3\] on meta"),
        ({"residual": X, "relu": False}, "residual: expected None where relu is false, got a tensor"),
    ],
)
def test_invalid_arguments_of_forward_raise(change, message):
    given = {"x": X, "weight": NUMBERS, "bias": NUMBERS, "residual": None, "eps": EPS, **change}
    with pytest.raises(ValueError, match=message):
        kernels.norm_relu(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dy": X[:1]}, r"dy: expected .* got torch.float32 \[1, 3, 4, 4\]"),
        ({"rstd": NUMBERS.half()}, r"rstd: expected float32 \[3\] .* got torch.float16 \[3\]"),
        ({"residual_grad": True}, "y: expected a tensor where residual_grad is true, got None"),
        ({"y": X, "relu": False}, "y: expected None where relu is false, got a tensor"),
    ],
)
def test_invalid_arguments_of_backward_raise(change, message):
    numbers = dict.fromkeys(("weight", "bias", "mean", "rstd"), NUMBERS)
    given = {"dy": X, "x": X, "y": None, **numbers, "residual_grad": False, **change}
    with pytest.raises(ValueError, match=message):
        kernels.norm_relu_backward(**given)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_plans_cover_every_map(itemsize):
    for channels in (*range(1, 70), 100, 112, 128, 256, 342, 512, 1000, 2047, 2048, 2049, 5000):
        for rows in (2, 63, 1000, 128 * 32 * 32, 256 * 112 * 112):
            plan = plan_norm_relu(rows, channels, itemsize)
            assert plan.tiles * plan.rows >= rows > (plan.tiles - 1) * plan.rows
            assert plan.columns * plan.block >= channels and (plan.columns == 1 or plan.rows == 1)
            assert plan.rows * channels <= plan.columns * plan.block
            assert 1 <= plan.sharing <= plan.tiles and 1 <= plan.writing <= plan.tiles
            assert plan.rows * channels % plan.vector == 0
            # Each thread has a vector of a tile, of which most is used if there are few channels.
            if channels <= 128:
                assert plan.vector == VECTOR and plan.rows * channels > 0.75 * plan.block
            assert plan.block == VECTOR * 32 * plan.warps


def test_one_compiled_kernel_serves_many_widths():
    """Triton compiles a kernel once for each set of its upper-case arguments."""

    def constants(channels):
        x = torch.empty(128, 8, 8, channels, device="meta").permute(0, 3, 1, 2)
        numbers = torch.empty(channels, device="meta")
        plan = plan_norm_relu(128 * 64, channels, 4)
        launches = kernels.forward_launches(x, numbers, numbers, x, EPS, True, plan)[1]
        return [{name: v for name, v in launch.arguments.items() if name.isupper()} for launch in launches]

    assert constants(9) == constants(12) == constants(15) and constants(19) == constants(25)
    assert constants(9)[1] == constants(64)[1] == constants(1000)[1]
