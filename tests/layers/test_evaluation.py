"""Layers in evaluation mode on the CPU: the ops take their place without gradients, and agree with PyTorch."""

import copy

import pytest
import torch
from torch import nn

from oekd_fast.common.op_errors import raising_value_error
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.layers import direct_conv, winograd
from oekd_fast.layers.direct_conv import conv3x3
from oekd_fast.layers.fast_module import use_direct_convs, use_fused_norms, use_winograd_convs

from ..conftest import ISAS, needs_native
from ..support.oracle import EPSILON
from .norm_relu_calls import EPS, NormReLU, in_layout, ops, problem, random, same_bits

pytestmark = needs_native

SHAPES = [
    *((2, channels, 5, 7) for channels in (1, 3, 16, 25, 51, 130)), (1, 16, 1, 1), (8, 16, 33, 31), (128, 512, 1, 1)
]  # fmt: skip
LAYOUTS = [torch.channels_last, torch.contiguous_format]
FORMS = ["add", "relu", "none"]


def statistics(channels):
    return random(channels, seed=5), random(channels, seed=6).square() + 0.1


def by_op(given, isa="auto", relu=True):
    x, weight, bias, residual, _ = given
    return ops.norm_relu_with(x, weight, bias, residual, *statistics(x.shape[1]), EPS, relu, isa=isa)


def plain(given, dtype, relu):
    x, weight, bias, residual = (t if t is None else t.to(dtype) for t in given[:4])
    mean, variance = (t.to(dtype) for t in statistics(x.shape[1]))
    y = nn.functional.batch_norm(x, mean, variance, weight, bias, False, eps=EPS)
    y = y if residual is None else y + residual
    return torch.relu(y) if relu else y


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_errors_are_no_larger_than_those_of_pytorch_in_fp32(isa, shape, form, layout, one_thread):
    added = random(*shape, seed=3) if form == "add" else None
    given = in_layout(layout, random(*shape), random(shape[1], seed=1), random(shape[1], seed=2), added, None)
    relu = form != "none"
    ours, theirs, exact = by_op(given, isa, relu), *(plain(given, dtype, relu) for dtype in (torch.float, torch.double))
    assert ours.is_contiguous(memory_format=layout)
    came, allowed = ((y - exact).norm().item() for y in (ours, theirs))
    assert came <= allowed + EPSILON * exact.norm().item()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("isa", ISAS)
def test_bfloat16_has_the_bits_of_float32_rounded_once(isa, form, layout, one_thread):
    x, *numbers, residual, dy = in_layout(layout, *problem((4, 25, 9, 7), residual=form == "add"))
    rounded = x.bfloat16(), *numbers, residual if residual is None else residual.bfloat16(), dy
    wide = [t if t is None else t.float() for t in rounded]
    relu = form != "none"
    assert torch.equal(by_op(rounded, isa, relu), by_op(wide, isa, relu).bfloat16())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_results_do_not_depend_on_threads(layout, threads):
    given = in_layout(layout, *problem((8, 25, 33, 31)))
    threads(1)
    alone = by_op(given)
    threads(2)
    assert torch.equal(by_op(given), alone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": random(0, 9, 6, 5)}, r"x: expected at least 1 values for each channel, got \[0, 9, 6, 5\]"),
        ({"mean": random(8)}, r"mean: expected \[9\], one number for each channel of x, got \[8\]"),
        ({"variance": random(9).double()}, "variance: expected float32, got Double"),
        ({"residual": random(4, 9, 6, 4)}, r"residual: expected the shape of x, \[4, 9, 6, 5\], got \[4, 9"),
        ({"residual": random(4, 9, 6, 5), "relu": False}, "residual: expected None where relu is false, got a tensor"),
        ({"eps": 0.0}, "eps: expected a finite number > 0, got 0"),
    ],
)
def test_invalid_arguments_raise(change, message):
    numbers = {name: random(9) for name in ("weight", "bias", "mean", "variance")}
    with pytest.raises(ValueError, match=message):
        raising_value_error(ops.norm_relu_with)(
            **{"x": random(4, 9, 6, 5), **numbers, "residual": None, "eps": EPS, **change}
        )


@pytest.mark.parametrize("residual", [False, True])
def test_the_op_passes_opcheck(residual, one_thread):
    x, weight, bias, added, _ = problem((2, 9, 4, 5), residual=residual)
    torch.library.opcheck(ops.norm_relu_with.default, (x, weight, bias, added, *statistics(9), EPS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_a_norm_is_the_op_without_gradients_and_plain_pytorch_with_them(form, dtype):
    x, weight, bias, residual, dy = problem((4, 9, 6, 5), residual=form == "add")
    given = x.to(dtype), weight, bias, residual if residual is None else residual.to(dtype), dy
    module = NormReLU(9, eps=EPS)
    mean, variance = statistics(9)
    state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    module.norm.load_state_dict({**module.norm.state_dict(), **state})
    use_fused_norms(module)
    module.eval()
    before = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        assert torch.equal(module(given[0], given[3], relu=form != "none"), by_op(given, relu=form != "none"))
    with torch.inference_mode():
        assert torch.equal(module(given[0], given[3], relu=form != "none"), by_op(given, relu=form != "none"))
    assert same_bits(before.values(), module.state_dict().values())
    leaf = given[0].clone().requires_grad_()
    y = module(leaf, given[3], relu=form != "none")
    torch.autograd.grad(y.sum(), leaf, create_graph=True)[0].sum().backward()  # a second derivative needs PyTorch's own
    assert torch.equal(y, _module_in_pytorch(module, given, form))


def _module_in_pytorch(module, given, form):
    y = module.norm(given[0])
    y = y if given[3] is None else y + given[3]
    return torch.relu(y) if form != "none" else y


def test_no_images_are_evaluated_by_pytorch():
    module = NormReLU(9)
    use_fused_norms(module)
    with torch.no_grad():
        assert module.eval()(random(0, 9, 6, 5)).shape == (0, 9, 6, 5)


@pytest.mark.parametrize("form", [direct_conv, winograd], ids=["direct", "winograd"])
def test_convolutions_are_the_ops_without_gradients_alone(form, monkeypatch):
    monkeypatch.setattr(form, "_rule_here", lambda: form.RULES["avx2"])
    conv = conv3x3(9, 9) if form is direct_conv else conv3x3(19, 19)
    x = random(64, conv.in_channels, 16, 16)
    conv.eval()
    assert not form.takes(conv, x)
    with torch.no_grad():
        assert form.takes(conv, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert not form.takes(conv, x)
    with torch.inference_mode():
        assert form.takes(conv, x)


@pytest.mark.parametrize("model", ["resnet20", "densenet_bc_12"])
def test_a_family_predicts_as_in_pytorch(model, one_thread):
    torch.manual_seed(0)
    family = build_ensemble(model, 3, 10).to(memory_format=torch.channels_last)
    images = random(16, 3, 32, 32)
    family.train()
    with torch.no_grad():
        for _ in range(3):
            family(images + torch.randn_like(images))  # running statistics
    family.eval()
    exact = copy.deepcopy(family).double()
    with torch.no_grad():
        theirs, truth = family(images).logits, exact(images.double()).logits
        for use in (use_fused_norms, use_direct_convs, use_winograd_convs):
            use(family)
        ours = family(images).logits
    for came, other, right in zip(ours, theirs, truth, strict=True):
        assert (came - right).norm() <= 2 * (other - right).norm() + EPSILON * right.norm()


def test_a_family_that_is_traced_or_exported_has_plain_layers():
    module = NormReLU(9)
    use_fused_norms(module)
    module.eval()
    with torch.no_grad():
        graph = torch.export.export(module, (random(4, 9, 6, 5),)).graph
        traced = torch.jit.trace(module, random(4, 9, 6, 5), check_trace=False)
    assert not any("oekd_fast" in str(node.target) for node in graph.nodes)
    assert "oekd_fast::" not in str(traced.inlined_graph)
