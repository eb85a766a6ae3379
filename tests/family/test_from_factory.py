"""Families whose students a function builds."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from oekd_fast import StudentEnsemble, load_student
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.saved import Normalisation, StudentMetadata, save_student

from ..support.engines import make_batch, make_engine
from ..support.width_networks import CLASSES, SIZE, ResNet, ViT

IMAGES = torch.randn(2, 3, SIZE, SIZE)


def family_of(factory, n=3, **options):
    return StudentEnsemble.from_factory(factory, IMAGES, n, **{"width_divisor": 1, **options})


@pytest.mark.parametrize("network, maps", [(ResNet, [(2, 5, 16, 16), (2, 10, 8, 8)]), (ViT, [(2, 10, 17, 1)] * 4)])
def test_students_are_the_networks_of_the_function_on_the_base_of_student_1(network, maps):
    widths = []

    def factory(width):
        widths.append(width.ratio)
        return network(width)

    family = family_of(factory).eval()
    assert {Fraction(1), Fraction(2, 3), Fraction(1, 3)} <= set(widths)
    output = family(IMAGES)
    assert [tuple(logits.shape) for logits in output.logits] == [(2, CLASSES)] * 3
    assert [tuple(m.shape) for m in output.features[1]] == maps
    entry = family.branches[1].stages[0].entry.weight.squeeze()
    assert torch.equal(entry, torch.eye(*entry.shape))


def test_a_base_of_one_width_needs_no_projection():
    def factory(width):
        network = ResNet(width)
        network.stem = nn.Conv2d(3, 8, 3, 1, 1)
        network.stages[0][0].conv1 = nn.Conv2d(8, width(8), 3, 1, 1, bias=False)
        network.stages[0][0].shortcut = nn.Conv2d(8, width(8), 1)
        return network

    assert "entry" not in dict(family_of(factory).branches[1].stages[0].named_children())


class Unfollowable(nn.Module):
    """A forward that no graph can hold."""

    def __init__(self, width):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, width(8), 3), nn.ReLU(), nn.Conv2d(width(8), width(8), 3))
        self.head = nn.Linear(width(8), 10)

    def forward(self, x):
        y = self.convs(x).mean((2, 3))
        return self.head(y if y.abs().max() < 100 else y / 2)


def test_whole_networks_need_no_graph():
    with pytest.raises(ValueError, match="forward of Unfollowable cannot be traced: .*y.abs"):
        family_of(Unfollowable)
    family = family_of(Unfollowable, blocks=())
    output = family(IMAGES)
    assert output.features == ((), (), ()) and torch.equal(output.logits[1], family.branches[1].classifier(IMAGES))
    assert family.architecture.map_channels(1, 3) == ()


def test_whole_networks_train_with_the_losses_on_logits_and_with_one_on_maps():
    architecture = family_of(Unfollowable, blocks=()).architecture
    images, labels = make_batch()
    for executor in ("sequential", "auto"):
        config = TrainConfig(num_students=3, warmup_epochs=0, executor=executor)
        assert config.loss_weights.feature_weight > 0
        engine = make_engine(config, architecture=architecture)
        before = [p.clone() for p in engine.ensemble.parameters()]
        engine.train_step(images, labels)
        assert all(not torch.equal(a, b) for a, b in zip(before, engine.ensemble.parameters(), strict=True))


def test_saved_students_of_whole_networks_load(tmp_path):
    family = family_of(Unfollowable, blocks=()).eval()
    metadata = StudentMetadata.of(
        family,
        1,
        image_size=SIZE,
        classes=[str(c) for c in range(10)],
        normalisation=Normalisation((0.5,) * 3, (0.25,) * 3),
    )
    path = save_student(family.student(1), tmp_path / "s", metadata, family.architecture)
    assert torch.equal(load_student(path, family.architecture)(IMAGES), family.student(1)(IMAGES))


@pytest.mark.parametrize(
    "factory, error, message",
    [
        (3, TypeError, "factory: expected a function that takes a Width, got int"),
        (lambda width: None, TypeError, "factory: expected a torch.nn.Module, got NoneType"),
        (
            lambda width: ViT(width, depth=4 if width.ratio == 1 else 3),
            ValueError,
            "module: a smaller student has another structure than student 1: expected 'blocks.3' in its forward, got",
        ),
        (
            lambda width: ResNet(width, 5 if width.ratio > 0.4 else 4),
            ValueError,
            "module: student 3 of 3 has another output than student 1: expected 5 logits, got 4",
        ),
    ],
)
def test_functions_that_do_not_fit_are_named(factory, error, message):
    with pytest.raises(error, match=message):
        family_of(factory)


def test_a_base_for_whole_networks_is_refused():
    with pytest.raises(ValueError, match=r"base: expected None with blocks=\(\), .* got 'stem'"):
        family_of(ResNet, base="stem", blocks=())
