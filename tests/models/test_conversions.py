"""Libraries replace, fuse, prune, quantise, trace and copy layers of networks; the networks keep their meaning."""

import copy
import pickle
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.ao.quantization import fuse_modules, get_default_qconfig_mapping, quantize_dynamic
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.func import functional_call
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from oekd_fast import build_ensemble
from oekd_fast.layers.fast_module import use_direct_convs, use_fused_norms
from oekd_fast.models import architecture_names, densenet, efficientnet, resnet
from oekd_fast.models.functional import Branch, FunctionalArchitecture

# The modules of every network; the last three have fewer layers than the registered ones.
RESNEXT = resnet._ResNet((1, 1, 1, 2), groups=2, base_width=16)
DENSENET = densenet._DenseNet(4, (2, 1, 1))
EFFICIENTNET = efficientnet._EfficientNet(Fraction(1, 4), Fraction(1, 8), dropout=0.2)
SMALL = {
    "resnet20": "resnet20",
    "resnet18": "resnet18",
    "resnext": FunctionalArchitecture("resnext", RESNEXT.base, RESNEXT.stages, nn.Linear),
    "densenet": FunctionalArchitecture("densenet", DENSENET.base, DENSENET.stages, densenet._head),
    "efficientnet": FunctionalArchitecture(
        "efficientnet", EFFICIENTNET.base, EFFICIENTNET.blocks, EFFICIENTNET.head, channels=EFFICIENTNET.channels
    ),
}


class FrozenBatchNorm2d(nn.Module):
    """timm's replacement of a BatchNorm: an affine map by the running statistics."""

    def __init__(self, norm):
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, x):
        scale = (self.weight * (self.running_var + self.eps).rsqrt())[:, None, None]
        return x * scale + self.bias[:, None, None] - self.running_mean[:, None, None] * scale


def freeze_norms(module):
    """Replace all BatchNorms as timm.utils.freeze_batch_norm_2d does: by their class, in all children."""
    if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
        return FrozenBatchNorm2d(module)
    for name, child in module.named_children():
        setattr(module, name, freeze_norms(child))
    return module


def fuse_pairs(student):
    """Fuse each convolution with the BatchNorm that follows it, as eager quantisation does."""
    names = dict(student.named_modules())
    pairs = [[name, name.replace("conv", "norm")] for name in names if name[-1:].isdigit() and "conv" in name]
    return fuse_modules(student, [pair for pair in pairs if _feeds(names, pair)])


def _feeds(names, pair):
    conv, norm = (names[name] for name in pair)
    return isinstance(conv, nn.Conv2d) and conv.out_channels == norm.num_features and "classifier" not in pair[0]


def on_meta_and_back(student):
    state = student.state_dict()
    student = copy.deepcopy(student).to("meta").to_empty(device="cpu")
    student.load_state_dict(state)
    return student


class Called(nn.Module):
    """The student called with other parameters, as torch.func does."""

    def __init__(self, student):
        super().__init__()
        self.student, self.state = student, {name: t.clone() for name, t in student.state_dict().items()}

    def forward(self, x):
        for tensor in self.student.parameters():
            tensor.data.zero_()
        return functional_call(self.student, self.state, (x,))


CONVERSIONS = {
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "frozen norms": freeze_norms,
    "fx": torch.fx.symbolic_trace,
    "fx fusion of norms": fuse,
    "script of fx": lambda student: torch.jit.script(torch.fx.symbolic_trace(student)),
    "deepcopy": copy.deepcopy,
    "pickle": lambda student: pickle.loads(pickle.dumps(student)),
    "channels_last": lambda student: student.to(memory_format=torch.channels_last),
    "meta device": on_meta_and_back,
    "functional_call": Called,
}


@pytest.fixture(params=SMALL)
def student(request):
    return narrow_student(request.param)


def narrow_student(name):
    """Return a narrow student in float64 in evaluation mode, whose norms have statistics of its own maps."""
    torch.manual_seed(0)
    student = build_ensemble(SMALL[name], 8, 5, members=(6,)).student(6).double()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        student(images(8))
    return student.eval()


def images(count=2, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", architecture_names())
def test_no_module_of_a_network_derives_from_a_layer_that_libraries_replace(name):
    with torch.device("meta"):
        family = build_ensemble(name, 2, 5, members=(1,), gated=True)
    ours = {type(m) for m in family.modules() if not type(m).__module__.startswith("torch.")}
    bases = {base for kind in ours for base in kind.__mro__ if base.__module__.startswith("torch.")}
    assert bases == {nn.Module, nn.Sequential} or bases == {nn.Module}
    assert any(type(m) is nn.BatchNorm2d for m in family.modules())
    assert any(type(m) is nn.Linear for m in family.branches.modules())


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_a_converted_student_computes_the_same_outputs(student, conversion):
    with torch.no_grad():
        expected = student(images())
        torch.testing.assert_close(CONVERSIONS[conversion](student)(images()), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("student", ["resnet20", "densenet"], indirect=True)
def test_traced_and_exported_students_compute_the_same_outputs(student):
    for use in (use_fused_norms, use_direct_convs):
        use(student)
    with torch.no_grad():
        expected = student(images())
        assert torch.equal(torch.jit.trace(student, images())(images()), expected)
        program = torch.export.export(student, (images(),))
    assert torch.equal(program.module()(images()), expected)
    assert program.state_dict.keys() == student.state_dict().keys()
    # torchao folds a norm into the convolution before it, which is right only if nothing else uses that convolution.
    operations = {node: str(node.target) for node in program.graph.nodes}
    before_norms = [node.args[0] for node, target in operations.items() if "batch_norm" in target]
    folded = [node for node in before_norms if "conv" in operations[node]]
    assert folded and all(len(node.users) == 1 for node in folded)


@pytest.mark.slow
@pytest.mark.parametrize("student", ["resnet20"], indirect=True)
def test_a_student_exported_in_training_mode_needs_no_op_of_this_package(student):
    student = student.float().to(memory_format=torch.channels_last).train()
    use_fused_norms(student)
    use_direct_convs(student)
    x = images().float().to(memory_format=torch.channels_last)
    program = torch.export.export(student, (x,))
    traced = torch.jit.trace(student, x, check_trace=False)
    assert "oekd_fast::" not in str(program.graph).replace(".", "::") and "oekd_fast::" not in str(traced.inlined_graph)


@pytest.mark.parametrize("student", ["resnet20", "resnet18"], indirect=True)
def test_eager_fusion_of_convolutions_and_norms_keeps_the_outputs(student):
    with torch.no_grad():
        expected = student(images())
        fused = fuse_pairs(student)
        assert any(isinstance(m, nn.Identity) for name, m in fused.named_modules() if name.endswith("norm1"))
        torch.testing.assert_close(fused(images()), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("student", ["resnet20", "densenet"], indirect=True)
def test_quantised_students_compute_nearly_the_same_outputs(student):
    student, x = student.float(), images(8, size=64).float()  # quantised means need maps of several pixels
    with torch.no_grad():
        expected = student(x)
        dynamic = quantize_dynamic(copy.deepcopy(student), {nn.Linear})
        prepared = prepare_fx(copy.deepcopy(student), get_default_qconfig_mapping(), (x,))
        prepared(x)
        static = convert_fx(prepared)
        for quantised, bound in ((dynamic, 0.02), (static, 0.2)):  # without a ReLU the error is above 1
            error = (quantised(x) - expected).square().mean() / expected.var()
            assert error < bound
    assert not any(type(m) is nn.Linear for m in dynamic.modules())


@pytest.mark.parametrize("part", ["student", "family", "branch", "block"])
def test_scripting_raises_one_line_that_names_the_ways_out(part):
    family = build_ensemble("resnet20", 2, 5)
    module = {
        "student": family.student(0),
        "family": family,
        "branch": family.branches[0],
        "block": nn.Sequential(family.branches[0].stages[0][0]),
    }[part]
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.script: .*symbolic_trace\(student\)") as error:
        torch.jit.script(module)
    assert "\n" not in str(error.value)


def halve(layer, inputs, output):
    return output / 2


def prune_all(student):
    for name, module in student.named_modules():
        if isinstance(module, nn.Conv2d) or name.endswith("norm1"):
            prune.custom_from_mask(module, "weight", (module.weight > 0).float())
            module.weight_orig.data.add_(0.1)  # as an optimizer's step: the hook has to compute the weight again


def hook_norms(student):
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(halve)


def normalise_weights(student):
    for module in student.modules():
        if type(module) is nn.Conv2d:
            parametrizations.weight_norm(module)
            module.parametrizations.weight.original1.data.abs_()


def replace_forward(student):
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = torch.tanh


CHANGES = {
    "pruning": prune_all,
    "hooks": hook_norms,
    "weight_norm": normalise_weights,
    "frozen norms": freeze_norms,
    "forward of the instance": replace_forward,
}


@pytest.mark.parametrize("change", CHANGES)
def test_fast_forms_do_not_bypass_changed_layers(change):
    x = images(8).float().to(memory_format=torch.channels_last)

    def output(change, fast):
        torch.manual_seed(0)
        student = build_ensemble("resnet20", 8, 5, members=(6,)).student(6).to(memory_format=torch.channels_last)
        change(student)
        use_fused_norms(student, fast)
        use_direct_convs(student, fast)
        return student(x)

    plain, fast = (output(CHANGES[change], fast) for fast in (False, True))
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)
    assert (plain - output(lambda student: None, False)).abs().max() > 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("student", ["resnet20", "densenet"], indirect=True)
def test_a_student_in_half_precision_computes_nearly_the_same_outputs(student, dtype):
    with torch.no_grad():
        expected = student(images())
        y = student.to(dtype)(images().to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


def test_operations_are_counted_alike_with_fast_forms():
    x = images(2).float().to(memory_format=torch.channels_last)
    counts = []
    for fast in (False, True):
        student = build_ensemble("resnet20", 8, 5, members=(6,)).student(6).to(memory_format=torch.channels_last)
        use_fused_norms(student, fast)
        use_direct_convs(student, fast)
        with FlopCounterMode(display=False) as counter:
            student(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_a_linear_head_receives_the_average_of_the_map():
    head = nn.Linear(4, 3)
    logits, (x,) = Branch([nn.Conv2d(2, 4, 3)], head)(torch.ones(5, 2, 8, 8))
    assert torch.equal(logits, head(x.mean((2, 3))))
