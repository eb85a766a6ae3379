"""Networks of timm at smaller widths."""

import warnings

import pytest
import torch

from oekd_fast.models import Width
from oekd_fast.models.any_network import scale_module
from oekd_fast.models.scaling import WidthRule

from ...support.torchvision_operators import declare_missing_operators

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:::(?!oekd_fast)")]

# The size of the images, and the largest difference of the share of the parameters from the square of the width.
NETWORKS = {
    "resnet18": (64, 0.01),
    "resnet50": (64, 0.01),
    "resnetv2_18": (64, 0.01),
    "mobilenetv3_small_050": (64, 0.03),
    "efficientnet_lite0": (64, 0.03),
    "regnetx_002": (64, 0.03),
    "regnety_002": (64, 0.03),
    "convnext_atto": (64, 0.02),
    "densenet121": (64, 0.02),
    "ghostnet_050": (64, 0.02),
    "mixer_s32_224": (64, 0.05),
    "vit_tiny_patch16_224": (64, 0.02),
    "deit_tiny_distilled_patch16_224": (64, 0.02),
}


@pytest.fixture(scope="module")
def timm():
    declare_missing_operators()
    return pytest.importorskip("timm", reason="timm is not installed; pip install 'oekd_fast[integrations]'")


def build(timm, name, size):
    sized = {"img_size": size} if name.startswith(("mixer", "vit", "deit")) else {}
    with warnings.catch_warnings(action="ignore"):
        return timm.create_model(name, num_classes=10, **sized)


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_fall_with_the_square_of_the_share(timm, name):
    size, tolerance = NETWORKS[name]
    network = build(timm, name, size)
    width = Width(2, 5)
    narrow = scale_module(network, torch.randn(2, 3, size, size), width)
    assert abs(parameters(narrow) / parameters(network) - float(width.ratio) ** 2) < tolerance


@pytest.mark.parametrize(
    ("name", "divisor"), [("mobilenetv3_small_050", 1), ("regnetx_002", 8), ("vit_tiny_patch16_224", 8)]
)
def test_all_students_run_and_shrink(timm, name, divisor):
    network, images = build(timm, name, 64), torch.randn(2, 3, 64, 64)
    students = [scale_module(network, images, Width(j, 5, WidthRule(divisor=divisor))).eval() for j in range(5)]
    with torch.no_grad():
        assert torch.equal(students[0](images), network.eval()(images))
        assert all(student(images).shape == (2, 10) for student in students)
    counts = [parameters(student) for student in students]
    assert counts == sorted(counts, reverse=True) and counts[0] > 15 * counts[4]


def test_both_forms_of_attention_agree_in_a_narrower_copy(timm):
    images = torch.randn(2, 3, 64, 64)
    narrow = scale_module(build(timm, "vit_tiny_patch16_224", 64), images, Width(2, 5)).eval()
    torch.nn.init.normal_(narrow.head.weight)
    with torch.no_grad():
        fused = narrow(images)
        for block in narrow.blocks:
            assert block.attn.fused_attn
            block.attn.fused_attn = False
        torch.testing.assert_close(narrow(images), fused, rtol=1e-4, atol=1e-4)


def test_channel_shuffles_are_refused(timm):
    from oekd_fast.models.any_network import ScalingError

    shuffled = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ChannelShuffle(4), torch.nn.Conv2d(32, 10, 1))
    torch.manual_seed(0)
    with pytest.raises(ScalingError, match=r"^1 \(ChannelShuffle\): "):
        scale_module(shuffled, torch.randn(2, 3, 16, 16), Width(2, 5))
