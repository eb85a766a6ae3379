"""Networks of your own: a family from three functions, saving and loading its students, registration."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from oekd_fast import FunctionalArchitecture, build_ensemble, load_student, register_architecture, student_flops
from oekd_fast.family.saved import Normalisation, StudentMetadata, save_student
from oekd_fast.models import get_architecture, registry

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "own_network.py"


def base(in_channels):
    return nn.Conv2d(in_channels, 4, 3, padding=1)


def blocks(width):
    return [nn.Sequential(nn.Conv2d(4, width(10), 3, 2, 1), nn.Tanh()), nn.Conv2d(width(10), width(5), 1)]


class Head(nn.Linear):
    def forward(self, x):
        return super().forward(x.amax((2, 3)))


OWN_NETWORK = FunctionalArchitecture("own", base, blocks, Head)


def metadata(family, j):
    scaling = Normalisation(mean=(0.5,) * 3, std=(0.25,) * 3)
    return StudentMetadata.of(family, j, image_size=8, classes="abcdefg", normalisation=scaling)


@pytest.fixture
def empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_ARCHITECTURES", dict(registry._ARCHITECTURES))


def test_the_example_runs_and_is_shown_in_the_documentation():
    names = runpy.run_path(str(EXAMPLE))
    family = names["ensemble"]
    assert [[m.shape[1] for m in maps] for maps in names["output"].features] == [
        [32, 64, 64],
        [24, 40, 40],
        [10, 24, 24],
    ]
    assert all(p.grad is not None for p in family.network_parameters())
    assert len(EXAMPLE.read_text().splitlines()) <= 40
    page = (ROOT / "docs" / "own_network.md").read_text()
    assert re.search(r"```python\n(.*?)```", page, re.DOTALL)[1].strip() == EXAMPLE.read_text().strip()


def test_a_family_of_your_own_network():
    family = build_ensemble(OWN_NETWORK, num_students=3, num_classes=7, in_channels=2)
    output = family(torch.randn(2, 2, 8, 8))
    assert [tuple(z.shape) for z in output.logits] == [(2, 7)] * 3
    assert [[tuple(m.shape[1:]) for m in maps] for maps in output.features] == [
        [(10, 4, 4), (5, 4, 4)],
        [(6, 4, 4), (3, 4, 4)],
        [(3, 4, 4), (1, 4, 4)],
    ]
    adapters = [[(a.in_channels, a.out_channels) for a in block] for block in family.adapters]
    assert adapters == [[(6, 10), (3, 10)], [(3, 5), (1, 5)]]


def test_networks_of_the_package_are_functional_architectures():
    assert isinstance(get_architecture("resnet20"), FunctionalArchitecture)


def test_finding_the_channels_draws_no_random_numbers():
    before = torch.get_rng_state()
    FunctionalArchitecture("fresh", base, blocks, Head).map_channels(0, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_initialise_is_applied_to_base_and_branches():
    def zero(module):
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.zeros_(module.weight)

    family = build_ensemble(FunctionalArchitecture("zeros", base, blocks, Head, zero), 2)
    assert not any(p.any() for name, p in family.named_parameters() if "weight" in name and "adapters" not in name)


def test_saved_students_need_their_architecture(tmp_path):
    family = build_ensemble(OWN_NETWORK, num_students=3, num_classes=7).eval()
    description = metadata(family, 1)
    path = save_student(family.student(1), tmp_path / "student_2", description, architecture=OWN_NETWORK)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(load_student(path, architecture=OWN_NETWORK)(images), family.student(1)(images))

    message = r"model: 'own' is unknown; pass architecture= for a network of your own, or call register_architecture"
    with pytest.raises(ValueError, match=message):
        load_student(path)
    with pytest.raises(ValueError, match=message):
        save_student(family.student(1), path, description)
    with pytest.raises(ValueError, match="architecture: expected 'own', got 'resnet20'"):
        load_student(path, architecture=get_architecture("resnet20"))
    wider = FunctionalArchitecture("own", base, lambda width: blocks(lambda channels: 2 * width(channels)), Head)
    with pytest.raises(ValueError, match=r"widths: expected \[12, 6\], as own has, got \[6, 3\]"):
        load_student(path, architecture=wider)


def test_functions_that_return_existing_modules(tmp_path):
    stem, block = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
    architecture = FunctionalArchitecture("existing", lambda c: stem, lambda width: [block], nn.Linear)
    assert architecture.map_channels(0, 1) == (6,)
    family = build_ensemble(architecture, 1, 5)
    assert family.base is stem and student_flops(family, 8) == [2 * (36 * 3 * 9 * 4 + 16 * 4 * 9 * 6 + 6 * 5)]
    description = StudentMetadata.of(
        family, 0, image_size=8, classes="abcde", normalisation=Normalisation(mean=(0.5,) * 3, std=(0.25,) * 3)
    )
    path = save_student(family.student(0), tmp_path / "student_1", description, architecture=architecture)
    loaded = load_student(path, architecture=architecture)
    loaded.base.weight.data.zero_()
    assert bool(stem.weight.abs().sum() > 0) and stem.weight.device.type == "cpu"


def test_a_registered_network_is_found_by_its_name(tmp_path, empty_registry):
    register_architecture(OWN_NETWORK)
    register_architecture(OWN_NETWORK)
    family = build_ensemble("own", 2, num_classes=7)
    path = save_student(family.student(0), tmp_path / "student_1", metadata(family, 0))
    assert load_student(path).metadata.widths == (10, 5)
    with pytest.raises(ValueError, match="architecture: the name 'own' is taken"):
        register_architecture(FunctionalArchitecture("own", base, blocks, nn.Linear))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "bad: blocks: expected at least one module, got none"),
        ([nn.Flatten()], r"bad: block 0: expected a map \[B, C, H, W\], got \[1, 4096\]"),
        ([nn.Identity(), nn.AdaptiveMaxPool2d(1, True)], r"bad: block 1: expected a map \[B, C, H, W\], got tuple"),
    ],
)
def test_a_block_that_returns_no_map_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        build_ensemble(FunctionalArchitecture("bad", base, lambda width: wrong, Head), 2)


def test_flops_of_your_own_network():
    family = build_ensemble(OWN_NETWORK, num_students=3, num_classes=7, members=(0, 1))
    shared = 27 * 4 * 64
    branches = [16 * (9 * 4 * a + a * b) + b * 7 for a, b in ((10, 5), (6, 3))]
    assert student_flops(family, 8) == [2 * (shared + branch) for branch in branches]


def test_a_model_that_is_no_architecture_is_rejected():
    with pytest.raises(TypeError, match="model: expected a name or an Architecture, got Conv2d"):
        build_ensemble(base(3))
