"""norm_relu: choice between the fused ops and plain PyTorch, running statistics, gradients, torch.compile."""

import copy
import io
import math
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.layers.fast_module import use_fused_norms

from ..conftest import needs_native
from ..support.oracle import EPSILON, error
from .norm_relu_calls import NormReLU, by_module, by_ops, in_layout, problem, random, same_bits


@needs_native
def test_concurrent_calls_do_not_affect_each_other(one_thread):
    problems = [problem((4, channels, 17, 13)) for channels in (3, 16, 25, 64)]
    expected = [by_module(*given, fused=True) for given in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            came = list(pool.map(lambda given: by_module(*given, fused=True), problems))
            assert all(same_bits(a, b) for a, b in zip(came, expected, strict=True))


@needs_native
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("residual", [False, True])
def test_the_module_equals_the_ops(residual, layout):
    given = in_layout(layout, *problem((4, 25, 9, 7), residual=residual))
    came, expected = by_module(*given, fused=True), by_ops(*given)
    assert same_bits([came[0], *came[3:]], [expected[0], *expected[3:]])


@needs_native
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_batch_norm_alone_equals_the_ops(layout):
    x, weight, bias, _, dy = in_layout(layout, *problem((4, 25, 9, 7), residual=False))
    module = NormReLU(25)
    module.norm.load_state_dict({**module.norm.state_dict(), "weight": weight, "bias": bias})
    use_fused_norms(module)
    leaf = x.clone().requires_grad_()
    y = module(leaf, relu=False)
    grads = torch.autograd.grad(y, [leaf, *module.norm.parameters()], dy)
    expected = by_ops(x, weight, bias, None, dy, relu=False)
    assert same_bits([y, *grads], [expected[0], *expected[3:]]) and (y < 0).any()
    assert module.norm.num_batches_tracked == 1


@needs_native
@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0])
def test_running_statistics_are_no_less_accurate_than_those_of_batch_norm(momentum):
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
        assert error(getattr(fused.norm, name), truth) <= error(getattr(theirs, name), truth) + EPSILON
    assert fused.norm.num_batches_tracked == 3


BAD = [(where, value) for where in ("x", "residual", "dy", "bias") for value in (math.nan, math.inf, -math.inf)]


@needs_native
@pytest.mark.parametrize(("where", "value"), [*BAD, ("weight", math.nan)])  # for an infinite weight PyTorch differs
def test_nan_and_inf_propagate_as_in_pytorch(where, value):
    x, weight, bias, added, dy = problem((3, 19, 5, 5))
    x[1, 3, 2, 2] = 9.0  # makes the output positive, so that gradients pass
    given = {"x": x, "weight": weight, "bias": bias, "residual": added, "dy": dy}
    given[where][(1, 3, 2, 2) if given[where].dim() == 4 else 3] = value
    for residual in (added, None):
        given["residual"] = residual
        came, expected = (by_module(**given, fused=fused) for fused in (True, False))
        for ours, theirs in zip(came, expected, strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-4, atol=1e-4)


@needs_native
@pytest.mark.parametrize(
    "needed", [("x",), ("weight",), ("bias",), ("residual",), ("x", "residual"), ("weight", "bias")]
)
def test_only_tensors_that_require_a_gradient_get_one(needed):
    x, weight, bias, residual, dy = problem((4, 9, 6, 5))
    norm = NormReLU(9)
    norm.norm.load_state_dict({**norm.norm.state_dict(), "weight": weight, "bias": bias})
    use_fused_norms(norm)
    leaves = {"x": x, "weight": norm.norm.weight, "bias": norm.norm.bias, "residual": residual}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name in needed)
    norm(x, residual).backward(dy)
    expected = dict(zip(("x", "weight", "bias", "residual"), by_ops(x, weight, bias, residual, dy)[3:], strict=True))
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[name]) if name in needed else leaf.grad is None


@needs_native
def test_output_needs_no_gradient_without_grad_mode():
    x, weight, bias, residual, _ = problem((4, 9, 6, 5))
    norm = NormReLU(9)
    use_fused_norms(norm)
    expected = norm(x, residual).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = norm(x, residual)
        assert not y.requires_grad and torch.equal(y, expected)
    assert norm.norm.num_batches_tracked == 3


@needs_native
def test_only_the_input_and_the_output_are_saved_for_backward():
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


UNSUPPORTED = {
    "evaluation": ({}, lambda norm: norm.eval(), lambda x: x),
    "float64": ({}, lambda norm: norm.double(), lambda x: x.double()),
    "bfloat16": ({}, lambda norm: norm.bfloat16(), lambda x: x.bfloat16()),
    "float16 maps": ({}, lambda norm: norm, lambda x: x.half()),
    "sliced": ({}, lambda norm: norm, lambda x: x[:, :, ::2]),
    "no images": ({}, lambda norm: norm.eval(), lambda x: x[:0]),
    "cumulative average": ({"momentum": None}, lambda norm: norm, lambda x: x),
    "no affine parameters": ({"affine": False}, lambda norm: norm, lambda x: x),
    "no running statistics": ({"track_running_stats": False}, lambda norm: norm, lambda x: x),
    "fused is False": ({}, lambda norm: use_fused_norms(norm, False) or norm, lambda x: x),
}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_calls_use_plain_pytorch(case, residual):
    options, prepare, convert = UNSUPPORTED[case]
    norm, expected = NormReLU(9, **options), nn.BatchNorm2d(9, **options)
    use_fused_norms(norm)
    norm, expected = prepare(norm), prepare(expected)
    x, added = convert(random(4, 9, 6, 5)), convert(random(4, 9, 6, 5, seed=3))
    y = norm(x, added) if residual else norm(x)
    z = expected(x) + added if residual else expected(x)
    assert torch.equal(y, torch.relu(z)) and y.dtype == x.dtype
    assert same_bits(norm.state_dict().values(), expected.state_dict().values())


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last_maps_on_cuda_use_the_op(dtype, monkeypatch):
    """FakeTensorMode stands for a GPU: it runs the choice of the op and computes nothing; autograd needs a real one."""
    plain = []
    monkeypatch.setattr(nn.functional, "batch_norm", lambda x, *args: plain.append(x) or torch.empty_like(x))
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            norm = NormReLU(9)
        channels_last, contiguous = (
            torch.empty_strided((4, 9, 6, 5), strides, dtype=dtype, device="cuda")
            for strides in ((270, 1, 45, 9), (270, 30, 5, 1))
        )
        for fused, x in ((True, channels_last), (False, channels_last), (True, contiguous)):
            plain.clear()
            use_fused_norms(norm, fused)
            y = norm(x, x)
            assert y.dtype == dtype and y.stride() == x.stride() and y.device.type == "cuda"
            assert (not plain) == (fused and x is channels_last)


@needs_native
def test_a_residual_that_broadcasts_uses_plain_pytorch():
    norm, expected = NormReLU(9), nn.BatchNorm2d(9)
    use_fused_norms(norm)
    x, added = random(4, 9, 6, 5), random(4, 9, 1, 1, seed=3)
    assert torch.equal(norm(x, added), torch.relu(expected(x) + added))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", [(1, 9, 1, 1), (4, 9, 5)], ids=str)
def test_invalid_maps_raise_the_error_of_batch_norm(shape, fused):
    norm, theirs = NormReLU(9), nn.BatchNorm2d(9)
    use_fused_norms(norm, fused)
    with pytest.raises(ValueError) as expected:
        theirs(torch.zeros(shape))
    with pytest.raises(ValueError) as came:
        norm(torch.zeros(shape))
    assert str(came.value) == str(expected.value)


@needs_native
def test_a_second_derivative_raises_only_in_the_fused_form():
    norm, x = NormReLU(9), random(4, 9, 6, 5).requires_grad_()
    norm(x).sum()
    (dx,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    assert torch.autograd.grad(dx.square().sum(), x)[0].any()
    use_fused_norms(norm)
    with pytest.raises(RuntimeError, match=r"norm_relu: the fused form is differentiable once, got create_graph=True"):
        torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = NormReLU(9), NormReLU(9)

    def forward(self, x):
        return self.second(self.first(x), residual=x)


@needs_native
def test_torch_compile_makes_one_graph():
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


def test_copies_and_files_keep_the_fused_attribute():
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


@pytest.mark.slow
@needs_native
def test_gradients_of_a_family_are_no_less_accurate_than_in_pytorch(one_thread):
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
    # The largest error is compared with a constant, because rounding decides the sign of outputs near 0.
    middle = len(exact) // 2
    assert errors["fused"][middle] <= errors["plain"][middle] + EPSILON and errors["fused"][-1] < 0.05
    for name, values in families["exact"].state_dict().items():
        torch.testing.assert_close(family.state_dict()[name].to(values.dtype), values, rtol=1e-5, atol=1e-6)
