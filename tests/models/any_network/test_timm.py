"""Networks of timm at smaller widths. `tests/campaigns/scale_timm.py` scales further networks."""

from importlib.util import find_spec

import pytest
import torch

from oekd_fast.models import Width
from oekd_fast.models.any_network import ScalingError, scale_module
from oekd_fast.models.scaling import WidthRule

from ...campaigns.scale_timm import IN_THE_SUITE, NETWORKS, SIZE, build, parameters, share

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:::(?!oekd_fast)")]


@pytest.fixture(autouse=True, scope="module")
def timm():
    if find_spec("timm") is None:
        pytest.skip("timm is not installed; pip install 'oekd_fast[integrations]'")


@pytest.mark.parametrize("name", IN_THE_SUITE)
def test_parameters_fall_with_the_square_of_the_share(name):
    width = Width(2, 5)
    assert abs(share(name, width) - float(width.ratio) ** 2) < NETWORKS[name]


@pytest.mark.parametrize(
    ("name", "divisor"), [("mobilenetv3_small_050", 1), ("regnetx_002", 8), ("vit_tiny_patch16_224", 8)]
)
def test_all_students_run_and_shrink(name, divisor):
    network, images = build(name), torch.randn(2, 3, SIZE, SIZE)
    students = [scale_module(network, images, Width(j, 5, WidthRule(divisor=divisor))).eval() for j in (0, 2, 4)]
    with torch.no_grad():
        assert torch.equal(students[0](images), network.eval()(images))
        assert all(student(images).shape == (2, 10) for student in students)
    counts = [parameters(student) for student in students]
    assert counts == sorted(counts, reverse=True) and counts[0] > 15 * counts[-1]


def test_both_forms_of_attention_agree_in_a_narrower_copy():
    images = torch.randn(2, 3, SIZE, SIZE)
    narrow = scale_module(build("vit_tiny_patch16_224"), images, Width(2, 5)).eval()
    torch.nn.init.normal_(narrow.head.weight)
    with torch.no_grad():
        fused = narrow(images)
        for block in narrow.blocks:
            assert block.attn.fused_attn
            block.attn.fused_attn = False
        torch.testing.assert_close(narrow(images), fused, rtol=1e-4, atol=1e-4)


def test_channel_shuffles_are_refused():
    shuffled = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ChannelShuffle(4), torch.nn.Conv2d(32, 10, 1))
    torch.manual_seed(0)
    with pytest.raises(ScalingError, match=r"^1 \(ChannelShuffle\): "):
        scale_module(shuffled, torch.randn(2, 3, 16, 16), Width(2, 5))
