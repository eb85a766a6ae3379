"""Families of the structures of well-known networks: each is cut, trained for a step, saved, loaded and exported."""

import copy

import pytest
import torch
from torch import nn

from oekd_fast import StudentEnsemble, load_student
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation
from oekd_fast.family.saved import LoadedStudent, Normalisation, StudentMetadata, save_student
from oekd_fast.training.compile_blocks import compile_blocks
from oekd_fast.training.distillation import family_options
from oekd_fast.training.engine import Engine
from oekd_fast.training.prepare import prepare_family

from ..support.engines import CPU, NORMALISATION
from ..support.small_networks import NETWORKS
from ..support.torchvision_operators import declare_missing_operators

# Number of blocks of the small networks; each has one module for the base. Those whose blocks are among those of regnet
# and efficientnet are left out.
BLOCKS = {
    "resnet": 3,
    "preact_resnet": 3,
    "efficientnet": 3,
    "regnet": 4,
    "ghostnet": 2,
    "densenet": 2,
    "vgg": 2,
    "convnext": 3,
    "mixer": 2,
    "vit": 3,
    "torch_vit": 3,
}
# Networks that timm has for tests: few layers of the structures of large ones.
TIMM = ("test_efficientnet", "test_vit")


def check_family(module: nn.Module, size: int, tmp_path) -> tuple[StudentEnsemble, LoadedStudent]:
    """Check a family of two students of `module` from its cut to its files, and return it and its saved student 2."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, size, size)
    before = copy.deepcopy(module)
    family = StudentEnsemble.from_module(module, images, 2)
    assert torch.equal(family.eval().student(0)(images), before.eval()(images))
    output = family(images)
    for j in range(2):
        assert tuple(m.shape[1] for m in output.features[j]) == family.architecture.map_channels(j, 2)
    assert [m.shape[2:] for m in output.features[0]] == [m.shape[2:] for m in output.features[1]]
    first, second = family.parameter_counts()
    assert 0.2 * first < second < 0.6 * first

    train_one_step(family, size)
    family.eval()
    assert torch.equal(module.eval()(images), family.student(0)(images))
    metadata = StudentMetadata.of(
        family,
        1,
        image_size=size,
        classes=[str(c) for c in range(10)],
        normalisation=Normalisation(*NORMALISATION),
    )
    path = save_student(family.student(1), tmp_path / "student", metadata, family.architecture)
    loaded = load_student(path, family.architecture)
    assert torch.equal(loaded(images), family.student(1)(images))
    return family, loaded


def train_one_step(family: StudentEnsemble, size: int) -> None:
    config = TrainConfig(num_students=2, warmup_epochs=0)
    engine = Engine(
        config,
        prepare_family(family, config),
        family_options(config),
        device=CPU,
        normalisation=NORMALISATION,
        augmentation=Augmentation(pad=2, flip=True),
        steps_per_epoch=10,
    )
    before = {name: p.clone() for name, p in family.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, size, size), dtype=torch.uint8, generator=generator)
    engine.train_step(images, torch.arange(4))
    # A bias in front of a normalisation has no gradient but rounding errors.
    still = [name for name, p in family.named_parameters() if torch.equal(p, before[name]) and p.ndim > 1]
    assert still == []


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_small_networks(name, tmp_path):
    torch.manual_seed(1)
    family, student = check_family(NETWORKS[name](), 32, tmp_path)
    assert len(family.architecture.cut.names) == 1 + BLOCKS[name]
    assert compile_blocks(family, family.architecture.block_type, "eager") > 0
    family(torch.randn(2, 3, 32, 32))

    if name == "vit":
        assert student.export(tmp_path / "student.onnx").difference < 1e-4
    else:
        dynamic = ({0: torch.export.Dim("batch", min=2)},)
        program = torch.export.export(student, (torch.randn(2, 3, 32, 32),), dynamic_shapes=dynamic)
        images = torch.randn(3, 3, 32, 32)
        torch.testing.assert_close(program.module()(images), student(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name, tmp_path):
    declare_missing_operators()
    import timm

    options = {"img_size": 32} if name == "test_vit" else {}
    torch.manual_seed(1)
    check_family(timm.create_model(name, num_classes=10, **options), 32, tmp_path)
