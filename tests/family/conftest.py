import pytest
import torch

from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.saved import save_student

from .student_files import describe


@pytest.fixture(scope="module")
def trained():
    """A family of five whose norms have statistics, in evaluation mode."""
    torch.manual_seed(0)
    family = build_ensemble("resnet20", num_classes=7)
    for _ in range(3):
        family(torch.randn(8, 3, 8, 8) * 2 + 1)
    return family.eval()


@pytest.fixture
def saved(tmp_path, trained):
    """Path of the weights of student 4."""
    return save_student(trained.student(3), tmp_path / "student_4.safetensors", describe(trained, 3))
