"""BatchNorm, residual and ReLU as one op each way: against fp64, against plain PyTorch, and how a module uses it."""

import copy
import io
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.layers.norm_relu import NormReLU, use_fused_norms

from ..conftest import ISAS
from ..support.oracle import EPSILON, error

ops = torch.ops.oekd_fast
native = pytest.mark.skipif(not ISAS, reason="the native extension was not built")
EPS = 1e-5
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


def random(*shape, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def problem(shape, *, residual=True, offset=0.0):
    """x, weight, bias, residual, dy; no gradient where fp32 may not tell whether the output is above 0."""
    x, weight, bias = random(*shape) + offset, random(shape[1], seed=1) + 1, random(shape[1], seed=2)
    added = random(*shape, seed=3) if residual else None
    before = nn.functional.batch_norm(x.double(), None, None, weight.double(), bias.double(), True, eps=EPS)
    before = before if added is None else before + added.double()
    return x, weight, bias, added, random(*shape, seed=4) * (before.abs() > 1e-2)


def plain(x, weight, bias, residual, dy, dtype):
    """y, mean, variance, dx, dweight, dbias, dresidual by PyTorch's own functions in `dtype`."""
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, weight, bias, residual) if t is not None]
    mean, variance = (torch.zeros(x.shape[1], dtype=dtype) for _ in range(2))
    y = nn.functional.batch_norm(leaves[0], mean, variance, *leaves[1:3], True, momentum=1.0, eps=EPS)
    y = torch.relu(y if residual is None else y + leaves[3])
    return [y.detach(), mean, variance, *torch.autograd.grad(y, leaves, dy.to(dtype))]


def by_ops(x, weight, bias, residual, dy, isa="auto"):
    y, mean, variance, rstd = ops.norm_relu(x, weight, bias, residual, EPS, isa=isa)
    kept = None if residual is None else y
    *grads, dresidual = ops.norm_relu_backward(dy, x, kept, weight, bias, mean, rstd, residual is not None, isa=isa)
    return [y, mean, variance, *grads, *(() if residual is None else (dresidual,))]


def by_module(x, weight, bias, residual, dy, *, fused):
    """As `by_ops`, through autograd; the running statistics instead of the batch's."""
    norm = NormReLU(x.shape[1], eps=EPS)
    norm.load_state_dict({**norm.state_dict(), "weight": weight, "bias": bias})
    use_fused_norms(norm, fused)
    leaves = [t.clone().requires_grad_() for t in (x, residual) if t is not None]
    y = norm(*leaves)
    dx, *dresidual, dweight, dbias = torch.autograd.grad(y, [*leaves, *norm.parameters()], dy)
    return [y.detach(), norm.running_mean, norm.running_var, dx, dweight, dbias, *dresidual]


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Means far above the deviation: not of one channel, whose rounding may be 0 by luck.
FAR = [(shape, offset) for shape in [(2, 25, 5, 7), (2, 130, 5, 7), (8, 16, 33, 31)] for offset in (100.0, -3000.0)]


@native
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("shape", "offset"), [*((shape, 0.0) for shape in SHAPES), *FAR], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_no_worse_than_fp32_pytorch(isa, shape, offset, residual, one_thread):
    given = problem(shape, residual=residual, offset=offset)
    truth, theirs = (plain(*given, dtype) for dtype in (torch.float64, torch.float32))
    sizes = _sizes(*given, *truth[:3])
    for name, ours, exact, other, size in zip(OUTPUTS, by_ops(*given, isa=isa), truth, theirs, sizes, strict=False):
        came, allowed = ((t - exact).norm().item() for t in (ours, other))
        assert came <= allowed + EPSILON * size.norm().item(), f"{name}: error {came:.3g}, PyTorch's {allowed:.3g}"


OUTPUTS = ("y", "mean", "variance", "dx", "dweight", "dbias", "dresidual")


def _sizes(x, weight, bias, residual, dy, y, mean, variance):
    """Of each output: of what it is a sum or difference of, where that may cancel."""
    rstd = (variance[:, None, None] + EPS).rsqrt()
    g = (dy * (y > 0)).abs()
    x_hat = (x - mean[:, None, None]).abs() * rstd
    over = 0, 2, 3
    return y, x.abs().mean(over), variance, g * rstd * weight[:, None, None], (g * x_hat).sum(over), g.sum(over), g


@native
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(4, 25, 9, 7), (16, 16, 32, 32)], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_backward_finds_exactly_what_forward_set_to_zero(isa, shape, residual, one_thread):
    x, weight, bias, added, _ = problem(shape, residual=residual)
    weight[0] = bias[0] = 0  # all outputs 0, but for a residual
    y, *_, dbias = by_ops(x, weight, bias, added, torch.ones(shape), isa)[:6]
    assert torch.equal(dbias, (y > 0).sum((0, 2, 3)).float())


@native
def test_gradient_of_the_residual_is_that_of_the_output_where_it_is_above_zero():
    given = problem((4, 19, 6, 5))
    y, *_, dresidual = by_ops(*given)
    assert torch.equal(dresidual, given[4] * (y > 0))
    x, weight, bias, _, dy = given
    _, mean, _, rstd = ops.norm_relu(x, weight, bias, given[3], EPS)
    *grads, unwanted = ops.norm_relu_backward(dy, x, y, weight, bias, mean, rstd, False)
    assert unwanted.shape == (0,)
    assert same_bits(grads, by_ops(*given)[3:6])


@native
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES[-3:], (3, 25, 40, 40)], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_threads_or_runs(isa, shape, residual, threads):
    given = problem(shape, residual=residual)
    threads(1)
    alone = by_ops(*given, isa=isa)
    assert same_bits(by_ops(*given, isa=isa), alone)
    threads(2)
    assert all(same_bits(by_ops(*given, isa=isa), alone) for _ in range(3))


@native
def test_auto_is_the_widest_instruction_set():
    given = problem((4, 25, 9, 7))
    assert same_bits(by_ops(*given), by_ops(*given, isa=ISAS[0]))


@native
def test_calls_from_several_threads_do_not_disturb_each_other(one_thread):
    problems = [problem((4, channels, 17, 13)) for channels in (3, 16, 25, 64)]
    expected = [by_module(*given, fused=True) for given in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            came = list(pool.map(lambda given: by_module(*given, fused=True), problems))
            assert all(same_bits(a, b) for a, b in zip(came, expected, strict=True))


@native
@pytest.mark.parametrize("residual", [False, True])
def test_module_gives_what_the_ops_give(residual):
    given = problem((4, 25, 9, 7), residual=residual)
    came, expected = by_module(*given, fused=True), by_ops(*given)
    assert same_bits([came[0], *came[3:]], [expected[0], *expected[3:]])


@native
@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0])
def test_running_statistics(momentum):
    fused, exact = NormReLU(19, momentum=momentum), nn.BatchNorm2d(19, momentum=momentum).double()
    theirs = nn.BatchNorm2d(19, momentum=momentum)
    use_fused_norms(fused)
    for seed in range(3):
        x = 5 + 2 * random(3, 19, 4, 5, seed=seed)
        for norm in (fused, theirs):
            norm(x)
        exact(x.double())
    for name in ("running_mean", "running_var"):
        truth = getattr(exact, name)
        assert error(getattr(fused, name), truth) <= error(getattr(theirs, name), truth) + EPSILON
    assert fused.num_batches_tracked == 3


BAD = [(where, value) for where in ("x", "residual", "dy", "bias") for value in (math.nan, math.inf, -math.inf)]


@native
@pytest.mark.parametrize(("where", "value"), [*BAD, ("weight", math.nan)])  # PyTorch multiplies inf - inf by inf
def test_nan_and_inf_come_out_where_they_do_in_pytorch(where, value):
    x, weight, bias, added, dy = problem((3, 19, 5, 5))
    x[1, 3, 2, 2] = 9.0  # above 0, so that gradients pass
    given = {"x": x, "weight": weight, "bias": bias, "residual": added, "dy": dy}
    given[where][(1, 3, 2, 2) if given[where].dim() == 4 else 3] = value
    for residual in (added, None):
        given["residual"] = residual
        came, expected = (by_module(**given, fused=fused) for fused in (True, False))
        for ours, theirs in zip(came, expected, strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-4, atol=1e-4)


@native
def test_a_channel_that_is_constant():
    x, weight, bias, _, dy = problem((3, 19, 5, 5), residual=False)
    x[:, 4] = 1234.567
    bias[4] = 0.25
    y, mean, variance, dx, *_ = by_ops(x, weight, bias, None, dy)
    torch.testing.assert_close(y[:, 4], torch.full_like(y[:, 4], 0.25), rtol=0, atol=1e-4)
    assert mean[4] == x[0, 4, 0, 0] and 0 <= variance[4] < 1e-6 and dx.isfinite().all()


@native
@pytest.mark.parametrize(
    "needed", [("x",), ("weight",), ("bias",), ("residual",), ("x", "residual"), ("weight", "bias")]
)
def test_only_what_needs_a_gradient_gets_one(needed):
    x, weight, bias, residual, dy = problem((4, 9, 6, 5))
    norm = NormReLU(9)
    norm.load_state_dict({**norm.state_dict(), "weight": weight, "bias": bias})
    use_fused_norms(norm)
    leaves = {"x": x, "weight": norm.weight, "bias": norm.bias, "residual": residual}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name in needed)
    norm(x, residual).backward(dy)
    expected = dict(zip(("x", "weight", "bias", "residual"), by_ops(x, weight, bias, residual, dy)[3:], strict=True))
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[name]) if name in needed else leaf.grad is None


@native
def test_no_gradient_is_asked_for():
    x, weight, bias, residual, _ = problem((4, 9, 6, 5))
    norm = NormReLU(9)
    use_fused_norms(norm)
    expected = norm(x, residual).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = norm(x, residual)
        assert not y.requires_grad and torch.equal(y, expected)
    assert norm.num_batches_tracked == 3


@native
@pytest.mark.parametrize("layout", ["expanded", "contiguous", "strided"])
def test_upstream_gradients_and_residuals_in_other_layouts(layout):
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


@native
def test_only_what_lives_anyway_is_kept_for_backward():
    x, weight, bias, residual, _ = problem((4, 9, 6, 5))
    norm = NormReLU(9)
    use_fused_norms(norm)
    x.requires_grad_()
    for added, maps in ((None, 1), (residual, 2)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # noqa: B023
            y = norm(x, added)
        places = {t.data_ptr() for t in kept if t.dim() == 4}
        assert places == {t.data_ptr() for t in (x, y)[:maps]}


NOT_COVERED = {
    "evaluation": ({}, lambda norm: norm.eval(), lambda x: x),
    "float64": ({}, lambda norm: norm.double(), lambda x: x.double()),
    "bfloat16": ({}, lambda norm: norm.bfloat16(), lambda x: x.bfloat16()),
    "bfloat16 maps": ({}, lambda norm: norm, lambda x: x.bfloat16()),
    "contiguous": ({}, lambda norm: norm, lambda x: x.contiguous()),
    "sliced": ({}, lambda norm: norm, lambda x: x[:, :, ::2]),
    "no images": ({}, lambda norm: norm.eval(), lambda x: x[:0]),
    "cumulative average": ({"momentum": None}, lambda norm: norm, lambda x: x),
    "no affine parameters": ({"affine": False}, lambda norm: norm, lambda x: x),
    "no running statistics": ({"track_running_stats": False}, lambda norm: norm, lambda x: x),
    "not asked for": ({}, lambda norm: use_fused_norms(norm, False) or norm, lambda x: x),
}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("case", NOT_COVERED)
def test_plain_pytorch_takes_what_the_op_does_not_cover(case, residual):
    options, prepare, convert = NOT_COVERED[case]
    norm, expected = NormReLU(9, **options), nn.BatchNorm2d(9, **options)
    use_fused_norms(norm)
    norm, expected = prepare(norm), prepare(expected)
    x, added = convert(random(4, 9, 6, 5)), convert(random(4, 9, 6, 5, seed=3))
    y = norm(x, added) if residual else norm(x)
    z = expected(x) + added if residual else expected(x)
    assert torch.equal(y, torch.relu(z)) and y.dtype == x.dtype
    assert same_bits(norm.state_dict().values(), expected.state_dict().values())


@native
def test_a_residual_that_is_broadcast_is_plain_pytorch():
    norm, expected = NormReLU(9), nn.BatchNorm2d(9)
    use_fused_norms(norm)
    x, added = random(4, 9, 6, 5), random(4, 9, 1, 1, seed=3)
    assert torch.equal(norm(x, added), torch.relu(expected(x) + added))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", [(1, 9, 1, 1), (4, 9, 5)], ids=str)
def test_maps_that_batch_norm_refuses_are_refused_alike(shape, fused):
    norm, theirs = NormReLU(9), nn.BatchNorm2d(9)
    use_fused_norms(norm, fused)
    with pytest.raises(ValueError) as expected:
        theirs(torch.zeros(shape))
    with pytest.raises(ValueError) as came:
        norm(torch.zeros(shape))
    assert str(came.value) == str(expected.value)


@native
def test_a_second_derivative_is_refused_where_fused_and_there_where_plain():
    norm, x = NormReLU(9), random(4, 9, 6, 5).requires_grad_()
    norm(x).sum()
    (dx,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    assert torch.autograd.grad(dx.square().sum(), x)[0].any()
    use_fused_norms(norm)
    with pytest.raises(RuntimeError, match=r"NormReLU: the fused form is differentiable once, got create_graph=True"):
        torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)


@native
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": random(9, 6)}, ValueError, r"x: expected \[B, C, H, W\] with C >= 1, got \[9, 6\]"),
        ({"x": random(1, 9, 1, 1)}, ValueError, r"x: expected at least 2 values a channel, got \[1, 9, 1, 1\]"),
        ({"x": random(4, 9, 6, 5).double()}, TypeError, "x: expected float32, got Double"),
        ({"weight": random(8)}, ValueError, r"weight: expected \[9\], one number a channel of x, got \[8\]"),
        ({"bias": random(9).double()}, TypeError, "bias: expected float32, got Double"),
        (
            {"residual": random(4, 9, 6, 4)},
            ValueError,
            r"residual: expected the shape of x, \[4, 9, 6, 5\], got \[4, 9",
        ),
        ({"residual": random(4, 9, 6, 5).half()}, TypeError, "residual: expected float32, got Half"),
        ({"isa": "avx1024"}, ValueError, "isa: expected one of auto, .*baseline on this processor, got avx1024"),
    ],
)
def test_what_forward_refuses_is_named(change, kind, message):
    given = {"x": random(4, 9, 6, 5), "weight": random(9), "bias": random(9), "residual": None, "eps": EPS, **change}
    with pytest.raises(kind, match=message):
        ops.norm_relu(**given)


@native
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"dy": random(4, 9, 6, 4)}, ValueError, r"dy: expected the shape of x, \[4, 9, 6, 5\], got \[4, 9, 6, 4\]"),
        ({"y": random(4, 9, 6, 5).bfloat16()}, TypeError, "y: expected float32, got BFloat16"),
        ({"rstd": random(1)}, ValueError, r"rstd: expected \[9\], one number a channel of x, got \[1\]"),
        ({"residual_grad": True}, ValueError, "y: expected a tensor where residual_grad is true, got None"),
    ],
)
def test_what_backward_refuses_is_named(change, kind, message):
    x, numbers = random(4, 9, 6, 5), {name: random(9) for name in ("weight", "bias", "mean", "rstd")}
    with pytest.raises(kind, match=message):
        ops.norm_relu_backward(**{"dy": x, "x": x, "y": None, **numbers, "residual_grad": False, **change})


@native
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("residual", [False, True])
def test_opcheck(residual, layout, one_thread):
    x, weight, bias, added, dy = problem((2, 9, 4, 5), residual=residual)
    x, added, dy = (t if t is None else t.contiguous(memory_format=layout) for t in (x, added, dy))
    torch.library.opcheck(ops.norm_relu.default, (x, weight, bias, added, EPS))
    y, mean, _, rstd = ops.norm_relu(x, weight, bias, added, EPS)
    kept = y if residual else None
    torch.library.opcheck(ops.norm_relu_backward.default, (dy, x, kept, weight, bias, mean, rstd, residual))


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = NormReLU(9), NormReLU(9)

    def forward(self, x):
        return self.second(self.first(x), residual=x)


@native
def test_compiles_as_one_graph():
    blocks = _Block(), _Block()
    use_fused_norms(blocks[0])
    use_fused_norms(blocks[1])
    torch.compiler.reset()
    compiled = torch.compile(blocks[1], fullgraph=True, backend="aot_eager")
    results = []
    for block, call in zip(blocks, (blocks[0], compiled), strict=True):
        x = random(4, 9, 6, 5).requires_grad_()
        for _ in range(2):
            y = call(x)
            y.square().sum().backward()
        grads = [x.grad, *(p.grad for p in block.parameters())]
        results.append([y.detach(), *grads, *block.state_dict().values()])
    assert same_bits(*results)


def test_state_is_that_of_batch_norm():
    norm, theirs = NormReLU(9, eps=1e-3, momentum=0.2), nn.BatchNorm2d(9, eps=1e-3, momentum=0.2)
    theirs(random(4, 9, 6, 5))
    norm.load_state_dict(theirs.state_dict())
    assert list(norm.state_dict()) == list(theirs.state_dict())
    assert same_bits(norm.state_dict().values(), theirs.state_dict().values())


def test_copies_and_files_keep_the_choice():
    block = _Block()
    assert not block.first.fused
    use_fused_norms(block.first)
    file = io.BytesIO()
    torch.save(block.first, file)
    file.seek(0)
    for other in (copy.deepcopy(block.first), torch.load(file, weights_only=False)):
        assert other.fused
    use_fused_norms(block)
    assert block.first.fused and block.second.fused
    use_fused_norms(block, False)
    assert not block.first.fused and not block.second.fused


@native
def test_a_whole_family_learns_the_same(one_thread):
    torch.manual_seed(0)
    family = build_ensemble("resnet20").to(memory_format=torch.channels_last)
    families = {"fused": family, "plain": copy.deepcopy(family), "exact": copy.deepcopy(family).double()}
    use_fused_norms(family)
    images, labels = random(8, 3, 16, 16), torch.arange(8)
    for one in families.values():
        output = one(images.to(next(one.parameters()).dtype))
        sum(nn.functional.cross_entropy(z, labels) for z in output.logits).backward()
    exact = [p.grad for p in families["exact"].network_parameters()]
    errors = {
        name: sorted(error(p.grad, q) for p, q in zip(families[name].network_parameters(), exact, strict=True))
        for name in ("fused", "plain")
    }
    # The worst is that of an output so near 0 that its sign is a matter of rounding.
    middle = len(exact) // 2
    assert errors["fused"][middle] <= errors["plain"][middle] + EPSILON and errors["fused"][-1] < 0.05
    for name, values in families["exact"].state_dict().items():
        torch.testing.assert_close(family.state_dict()[name].to(values.dtype), values, rtol=1e-5, atol=1e-6)
