"""Loading published state dicts into student 1: the outputs are equal, or an error names the difference."""

import re

import pytest
import torch
from safetensors.torch import save_file

from oekd_fast import build_ensemble, load_standard_weights

from .published_nets import NETS, published

SOME_NAMES = {
    "resnet18": {"conv1.weight", "layer1.1.bn2.running_var", "layer2.0.downsample.1.bias", "fc.weight"},
    "resnet50": {"layer1.0.downsample.0.weight", "layer4.2.conv3.weight"},
    "densenet121": {
        "features.norm0.weight",
        "features.denseblock1.denselayer1.norm1.weight",
        "features.transition3.conv.weight",
        "features.norm5.bias",
        "classifier.bias",
    },
    "efficientnet_b0, torchvision": {
        "features.0.1.weight",
        "features.1.0.block.0.0.weight",
        "features.1.0.block.1.fc1.bias",
        "features.2.0.block.2.fc2.weight",
        "features.7.0.block.3.1.running_mean",
        "features.8.0.weight",
        "classifier.1.weight",
    },
    "efficientnet_b0, timm": {
        "conv_stem.weight",
        "bn1.weight",
        "blocks.0.0.conv_dw.weight",
        "blocks.0.0.se.conv_reduce.bias",
        "blocks.1.0.conv_pw.weight",
        "blocks.6.0.bn3.bias",
        "conv_head.weight",
        "classifier.weight",
    },
}
TENSOR_COUNTS = {"resnet18": 122, "resnet50": 320, "densenet121": 727}


@pytest.fixture(scope="module", params=NETS)
def case(request):
    torch.manual_seed(0)
    name, net = published(request.param, num_classes=7)
    return request.param, name, net


def student_of(name, num_classes=7, j=0, in_channels=3):
    family = build_ensemble(name, 5, num_classes, in_channels, members=(j,))
    return family.student(j).eval()


def rejects(student, state_dict, message, **options):
    """Check that loading raises `message` and leaves the student unchanged."""
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        load_standard_weights(student, state_dict, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_student_1_computes_the_outputs_of_the_published_network(case, one_thread):
    layout, name, net = case
    assert net.state_dict().keys() >= SOME_NAMES[layout]
    assert len(net.state_dict()) == TENSOR_COUNTS.get(layout, len(net.state_dict()))
    student = student_of(name)
    load_standard_weights(student, net.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(student(images), net(images), rtol=1e-4, atol=1e-4)


def test_weights_are_loaded_into_the_family_of_the_student():
    name, net = published("resnet18", num_classes=10)
    family = build_ensemble(name, 2)
    narrow = family.branches[1].classifier.weight.clone()
    load_standard_weights(family.student(0), net.state_dict())
    assert torch.equal(family.base.stage[1].conv2.weight, net.layer1[1].conv2.weight)
    assert torch.equal(family.branches[0].classifier.weight, net.fc.weight)
    assert torch.equal(family.branches[1].classifier.weight, narrow)


def test_a_classifier_of_other_classes_is_rejected_or_skipped(case):
    layout, name, net = case
    student = student_of(name, num_classes=3)
    rejects(student, net.state_dict(), "; classifier='skip' keeps the student's own last layer")
    before = student.state_dict()
    own = {key: tensor.clone() for key, tensor in before.items() if tensor.shape[:1] == (3,)}
    assert len(own) == 2
    load_standard_weights(student, net.state_dict(), classifier="skip")
    after = student.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in own.items())
    assert torch.equal(after["base.conv.weight"], next(iter(net.parameters())))


@pytest.mark.parametrize("num_classes", [3, 7])
def test_auto_skips_the_classifier_only_if_the_classes_differ(case, num_classes):
    _, name, net = case
    student, expected = student_of(name, num_classes), student_of(name, num_classes)
    expected.load_state_dict(student.state_dict())
    load_standard_weights(expected, net.state_dict(), classifier="strict" if num_classes == 7 else "skip")
    load_standard_weights(student, net.state_dict(), classifier="auto")
    after = student.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in expected.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_read_from_files(tmp_path, suffix):
    name, net = published("resnet18", num_classes=7)
    path = tmp_path / f"weights{suffix}"
    save_file(net.state_dict(), path) if suffix == ".safetensors" else torch.save(net.state_dict(), path)
    student = student_of(name)
    load_standard_weights(student, str(path))
    assert torch.equal(student.base.conv.weight, net.conv1.weight)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_damaged_files_are_named(tmp_path, suffix, content):
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(FileNotFoundError, match=path.name):
        load_standard_weights(student_of("resnet20"), path)
    path.write_bytes(content)
    rejects(student_of("resnet20"), path, f"state_dict: {path} cannot be read (")


@pytest.mark.parametrize("value", [float("nan"), -float("inf"), 1e300])
def test_weights_that_are_not_finite_in_float32_are_named_with_their_file(tmp_path, value):
    name, net = published("resnet18", num_classes=7)
    state = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in net.state_dict().items()}
    state["layer3.1.bn2.running_var"][5] = value
    wrapped = {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}
    message = "expected finite weights, got NaN or infinity in 'module.layer3.1.bn2.running_var'"
    rejects(student_of(name), wrapped, f"state_dict: {message}")
    torch.save(wrapped, tmp_path / "w.pth")
    rejects(student_of(name), tmp_path / "w.pth", f"state_dict: {tmp_path / 'w.pth'}: {message}")


def test_a_classifier_that_is_skipped_may_hold_anything():
    name, net = published("resnet18", num_classes=7)
    net.fc.bias.data.fill_(float("nan"))
    student = student_of(name)
    rejects(student, net.state_dict(), "got NaN or infinity in 'fc.bias'")
    load_standard_weights(student, net.state_dict(), classifier="skip")
    assert torch.equal(student.base.conv.weight, net.conv1.weight)


def test_old_densenet_names_and_files_without_num_batches_tracked():
    name, net = published("densenet121", num_classes=7)
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): tensor
        for key, tensor in net.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock2.denselayer12.norm.1.weight" in old
    student = student_of(name)
    load_standard_weights(student, old)
    ours = student.branch.stages[0].block[11].conv1.weight
    assert torch.equal(ours, net.features.denseblock2.denselayer12.conv1.weight)


@pytest.mark.slow
def test_another_width_depth_or_network_is_rejected():
    _, net = published("resnet18", num_classes=7)
    state = net.state_dict()
    message = (
        "the shapes are not those of the student; layer2.0.conv1.weight: expected [102, 64, 3, 3], got [128, 64, 3, 3]"
    )
    rejects(student_of("resnet18", j=1), state, message)
    for classifier in ("skip", "auto"):
        rejects(student_of("resnet18", j=1), state, "layer2.0.conv1.weight: expected [102", classifier=classifier)
    rejects(student_of("resnet18", in_channels=1), state, "conv1.weight: expected [64, 1, 7, 7], got [64, 3, 7, 7]")
    rejects(student_of("resnet34"), state, "missing: base.stage.2.conv1.weight, ")
    rejects(student_of("resnet20"), state, "the tensors are not those of the student; missing: base.0.weight, ")
    rejects(student_of("densenet121"), state, "the tensors are not those of the student; missing: ")
    rejects(student_of("resnet18"), state | {"layer1.0.se.weight": torch.ones(1)}, "unexpected: layer1.0.se.weight")
    without = {key: tensor for key, tensor in state.items() if key != "layer3.0.bn1.running_var"}
    rejects(student_of("resnet18"), without, "missing: branch.stages.1.0.norm1.running_var; unexpected: none")


def test_invalid_arguments_are_rejected():
    student = student_of("resnet20")
    rejects(student, {"a.weight": torch.ones(1)}, "as torchvision or timm has them, got a.weight")
    rejects(student, {}, "classifier: expected one of ('strict', 'skip', 'auto'), got 'drop'", classifier="drop")
    with pytest.raises(TypeError, match="state_dict: expected a mapping of names to tensors, got list"):
        load_standard_weights(student, [])
    with pytest.raises(TypeError, match="state_dict: expected a tensor as 'fc.bias', got list"):
        load_standard_weights(student, {"layer1.0.conv1.weight": torch.ones(1), "fc.bias": []})
    rejects(student, {"state_dict": {}}, "as torchvision or timm has them, got state_dict")
