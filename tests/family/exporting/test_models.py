"""Narrow and shallow networks of every kind, families of a user's module, and what ran before, exported.

Networks of the same structures are exported as programs in tests/family/test_structures.py, so that only one is here.
`tests/campaigns/export_models.py` exports all registered networks.
"""

from fractions import Fraction

import pytest
import torch
from torch import nn

from oekd_fast import FunctionalArchitecture, StudentEnsemble
from oekd_fast.models import densenet, efficientnet, resnet

from ...campaigns.export_models import export_model, student_with_statistics
from .files import run

RESNEXT = resnet._ResNet((1, 1, 1, 1), groups=2, base_width=16)
DENSENET = densenet._DenseNet(4, (2, 1, 1))
EFFICIENTNET = efficientnet._EfficientNet(Fraction(1, 4), Fraction(1, 8), dropout=0.2)
NETWORKS = {
    "resnext": FunctionalArchitecture("resnext", RESNEXT.base, RESNEXT.stages, nn.Linear),
    "densenet": FunctionalArchitecture("densenet", DENSENET.base, DENSENET.stages, densenet._head),
    "efficientnet": FunctionalArchitecture(
        "efficientnet", EFFICIENTNET.base, EFFICIENTNET.blocks, EFFICIENTNET.head, channels=EFFICIENTNET.channels
    ),
}
SHAPE = (3, 32, 32)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize(
    ("name", "suffixes"), [("resnext", (".onnx",)), ("densenet", (".onnx", ".pt2")), ("efficientnet", (".onnx",))]
)
def test_files_compute_the_logits(name, suffixes, tmp_path):
    student = student_with_statistics(NETWORKS[name], 8, 6).student(6)
    images = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = student(images)
    for suffix in suffixes:
        file = student.export(tmp_path / f"a{suffix}", preprocessing=False, image_shape=SHAPE)
        assert file.difference <= 1e-5
        logits = run(file.path, images)["logits"]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_students_of_a_users_module(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.Hardswish()),
        nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 32, 1), nn.GELU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    images = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(4))
    family = StudentEnsemble.from_module(net, images[:2], num_students=2, width_divisor=1)
    file = family.export(tmp_path / "family.onnx", preprocessing=False, image_shape=SHAPE)
    found = run(file.path, images)
    expected = net.eval()(images)
    torch.testing.assert_close(found["logits_1"], expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(found["ensemble"], (found["logits_1"] + found["logits_2"]) / 2)


def test_a_registered_network_at_full_depth(tmp_path):
    found = export_model("resnet20", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resnet20.onnx", "resnet20.pt2"]
    for form in ("onnx", "pt2"):
        assert found[form]["difference"] <= found[form]["tolerance"] == 1e-5
        assert found[form]["bytes"] == (tmp_path / f"resnet20.{form}").stat().st_size
