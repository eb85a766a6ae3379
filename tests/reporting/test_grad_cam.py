"""Grad-CAM, compared with its formula for a network with known gradients."""

import pytest
import torch
from torch import nn

from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.student import Student
from oekd_fast.models import architecture_names
from oekd_fast.reporting.grad_cam import grad_cam


class PooledSum(nn.Module):
    """Logits from the mean of each channel: channel 0 is evidence for class 0 and against class 1."""

    def forward(self, x):
        means = x.mean(dim=(2, 3))
        return torch.stack([means[:, 0] - means[:, 1], -means[:, 0], 0 * means[:, 0]], dim=1), (x,)


@pytest.fixture
def student():
    return Student(nn.Identity().eval(), PooledSum().eval())


def test_the_map_equals_the_formula(student):
    images = torch.zeros(2, 2, 4, 4)
    images[0, 0, 1, 2] = 3.0  # for class 0
    images[0, 0, 0, 0] = 1.5
    images[0, 1, 3, 3] = 2.0  # against class 0: removed by the ReLU
    images[1, 0, 2, 2] = 1.0
    cam = grad_cam(student, images, torch.tensor([0, 1]))
    expected = torch.zeros(2, 4, 4)
    expected[0, 1, 2], expected[0, 0, 0] = 1.0, 0.5
    assert torch.equal(cam, expected)


def test_a_class_without_evidence_has_an_empty_map(student):
    assert not grad_cam(student, torch.rand(1, 2, 5, 5), torch.tensor([2])).any()


@pytest.mark.parametrize("model", ["resnet20", "densenet_bc_12", "efficientnet_b0"])
def test_maps_of_real_networks_are_scaled_and_independent_of_the_batch(model):
    assert model in architecture_names()
    torch.manual_seed(0)
    student = build_ensemble(model, 2, num_classes=4, in_channels=1).eval().student(1)
    images = torch.randn(3, 1, 32, 32)
    cam = grad_cam(student, images, torch.tensor([0, 3, 1]))
    assert cam.shape == (3, 32, 32) and cam.dtype == torch.float32 and not cam.requires_grad
    assert cam.min() >= 0 and cam.amax(dim=(1, 2)).max() == 1
    assert all(parameter.grad is None for parameter in student.parameters())
    one = grad_cam(student, images[1:2], torch.tensor([3]))
    torch.testing.assert_close(one[0], cam[1], atol=1e-4, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(grad_cam(student, images, torch.tensor([0, 3, 1])), cam)


def test_training_mode_is_rejected(student):
    student.train()
    with pytest.raises(ValueError, match="student: expected evaluation mode, got training mode"):
        grad_cam(student, torch.zeros(1, 2, 4, 4), torch.tensor([0]))


@pytest.mark.parametrize("extra", [0, 1])
def test_tokens_are_a_square_of_patches_after_a_class_token(student, extra):
    patches = torch.zeros(1, 2, 3, 3)
    patches[0, 0, 1, 2] = 1.0
    tokens = torch.cat([torch.full((1, 2, extra, 1), 0.25), patches.reshape(1, 2, 9, 1)], dim=2)

    class Tokens(nn.Identity):
        def forward(self, x):
            return tokens.clone()

    cam = grad_cam(Student(Tokens().eval(), student.branch), torch.zeros(1, 2, 6, 6), torch.tensor([0]))
    assert cam[0].argmax() in (2 * 6 + 4, 2 * 6 + 5, 3 * 6 + 4, 3 * 6 + 5) and cam.shape == (1, 6, 6)
