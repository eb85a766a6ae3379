"""Families of a user's module: student 1 is the module, the others are narrower copies on its base."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from oekd_fast import StudentEnsemble, ensemble_kd_loss, load_student, student_flops
from oekd_fast.family.saved import Normalisation, StudentMetadata, save_student
from oekd_fast.models import Width
from oekd_fast.models.any_network import scale_module

from ..support.width_networks import CLASSES, SIZE, ResNet, ViT

IMAGES = torch.randn(2, 3, SIZE, SIZE)


def family_of(module, n=3, **options):
    return StudentEnsemble.from_module(module, IMAGES, n, **{"width_divisor": 1, **options})


def small_vit():
    return ViT(depth=2, dropout=0.5)


def metadata_of(family, j):
    return StudentMetadata.of(
        family,
        j,
        image_size=SIZE,
        classes=[str(c) for c in range(CLASSES)],
        normalisation=Normalisation((0.5,) * 3, (0.25,) * 3),
    )


@pytest.mark.parametrize("network", [ResNet, small_vit])
def test_student_1_is_the_module(network):
    module = network().eval()
    before = copy.deepcopy(module)
    family = family_of(module, 2)
    images = torch.randn(5, 3, SIZE, SIZE)
    assert not family.training
    assert torch.equal(family.student(0)(images), before(images))
    assert torch.equal(family(images).logits[0], module(images))
    own = {id(p) for p in module.parameters()}
    assert {id(p) for p in family.student(0).parameters()} == own
    assert {name: p.shape for name, p in before.state_dict().items()} == {
        name: p.shape for name, p in module.state_dict().items()
    }


def test_training_the_family_trains_the_module():
    module = ResNet()
    family = family_of(module)
    before = copy.deepcopy(module.state_dict())
    optimizer = torch.optim.SGD(family.parameters(), 0.1)
    output = family(IMAGES)
    loss = ensemble_kd_loss(output.logits, torch.tensor([0, 1])).loss + sum(
        m.square().sum() for m in output.features[1]
    )
    loss.backward()
    assert all(p.grad is not None for p in family.network_parameters())
    optimizer.step()
    assert all(not torch.equal(module.state_dict()[name], before[name]) for name, _ in module.named_parameters())
    assert torch.equal(family.eval().student(0)(IMAGES), module(IMAGES))


def test_maps_are_returned_as_channels_by_places():
    family = family_of(ViT(depth=3), 2)
    output = family(IMAGES)
    assert [tuple(m.shape) for m in output.features[1]] == [(2, 8, 17, 1)] * 3
    assert family.architecture.map_channels(1, 2) == (8,) * 3
    assert family.architecture.cut.names == ("patch_embed", "blocks.0", "blocks.1", "blocks.2")


def test_a_student_on_the_shared_base_equals_the_scaled_copy():
    """The base is one convolution here, so that the projection selects just what the copy's own base computes."""
    module = ResNet().eval()
    family = family_of(module)
    assert family.branches[1].stages[0].entry.weight.shape == (5, 8, 1, 1)
    alone = scale_module(module, IMAGES, Width(1, 3)).eval()
    torch.testing.assert_close(family.student(1)(IMAGES), alone(IMAGES))


def test_blocks_that_begin_with_a_convolution_take_the_whole_map_of_the_base():
    conv = [[nn.Conv2d(i, o, 3, 1, 1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)] for i, o in ((3, 8), (8, 12), (12, 6))]
    module = nn.Sequential(*conv[0], *conv[1], *conv[2], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    family = family_of(module, 2)
    first = dict(family.branches[1].stages[0].named_modules())
    assert "entry" not in first and first["3"].weight.shape == (6, 8, 3, 3)


def test_modules_in_place_at_the_beginning_of_a_block_work_out_of_place():
    module = ResNet()
    family = family_of(module, base="stem", blocks=["stages.0", "stages.1", "norm"])
    assert [block.act.inplace for stage in module.stages for block in stage] == [False, True, False, True]
    output = family(IMAGES)
    again = module.norm(output.features[0][1])
    assert torch.equal(output.features[0][2], again) and bool((again < 0).any())


def test_other_changes_in_place_are_refused_by_name():
    class Adds(nn.Sequential):
        def forward(self, x):
            return super().forward(x.add_(1))

    blocks = [Adds(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)) for _ in range(2)]
    module = nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    with pytest.raises(ValueError, match="blocks: 1 changes its input in place"):
        family_of(module)


def test_parameters_of_two_parts_are_refused_by_name():
    module = ResNet()
    module.stages[1][1].conv2.weight = module.stages[1][1].conv1.weight
    assert len(family_of(module).parameter_counts()) == 3
    module.stages[0][1].conv2.weight = module.stages[0][0].conv2.weight
    module.stages[0][1] = module.stages[0][0]
    message = r"blocks: expected a module that is called once, got 'stages.0.0', which is called 2 times"
    with pytest.raises(ValueError, match=message):
        family_of(module, blocks=["stages.0.0"])
    tied = ResNet(lambda channels: 8)
    tied.stages[1][1].conv1.weight = tied.stages[0][1].conv1.weight
    with pytest.raises(ValueError, match="blocks: expected parts without common .* 'stages.1.1.conv1.weight' in the"):
        family_of(tied)


def test_building_again_gives_copies():
    module = ResNet()
    family = family_of(module)
    again = StudentEnsemble(family.architecture, 3, CLASSES, 3)
    assert torch.equal(again.eval().student(0)(IMAGES), family.eval().student(0)(IMAGES))
    assert not {id(p) for p in again.parameters()} & {id(p) for p in module.parameters()}
    assert copy.deepcopy(family).architecture is family.architecture


@pytest.mark.parametrize("network", [ResNet, small_vit])
def test_saved_students_have_the_same_outputs_and_leave_the_module_as_it_is(network, tmp_path):
    module = network()
    family = family_of(module, 2).eval()
    before, draws = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    for j in range(2):
        path = save_student(family.student(j), tmp_path / f"s{j}", metadata_of(family, j), family.architecture)
        loaded = load_student(path, family.architecture)
        assert torch.equal(loaded(IMAGES), family.student(j)(IMAGES))
        for parameter in loaded.parameters():
            parameter.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws)


def test_fresh_students_have_weights_of_their_own():
    module = ResNet().eval()
    sliced, fresh = (family_of(copy.deepcopy(module), 2, start=start).branches[1] for start in ("slice", "fresh"))
    weights = [branch.get_parameter("stages.1.stages.1.0.conv1.weight") for branch in (sliced, fresh)]
    assert weights[0].shape == weights[1].shape
    rows = module.stages[1][0].conv1.weight.flatten().tolist()
    assert set(weights[0].flatten().tolist()) <= set(rows) and not set(weights[1].flatten().tolist()) & set(rows)


def test_a_student_that_was_built_before_is_built_without_its_weights_on_meta():
    architecture = family_of(ResNet(), 2).architecture
    with torch.device("meta"):
        parts = architecture.build_base(3), architecture.build_branch(1, 2, CLASSES)
        new = architecture.build_branch(2, 3, CLASSES)
    real = architecture.build_branch(1, 2, CLASSES)
    assert all(p.is_meta for name, p in parts[0].named_parameters())
    assert all(p.is_meta for name, p in parts[1].named_parameters() if "entry" not in name)
    assert not any(p.is_meta for branch in (new, real) for p in branch.parameters())
    shapes = [{name: p.shape for name, p in branch.state_dict().items()} for branch in (parts[1], real)]
    assert shapes[0] == shapes[1]


def test_flops_are_those_of_the_module():
    module = ResNet().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(IMAGES[:1])
    family = family_of(module)
    first, second, third = student_flops(family, SIZE)
    assert first == counter.get_total_flops() and first > second > third


def test_flops_of_modules_with_tensors_of_their_own():
    class Scaled(nn.Conv2d):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.factor = torch.ones(1)  # no buffer, so that it does not move

        def forward(self, x):
            return super().forward(x * self.factor)

    layers = Scaled(3, 8, 1), Scaled(8, 8, 1), Scaled(8, 8, 1)
    family = family_of(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), 1)
    assert student_flops(family, 4) == [2 * (16 * (3 * 8 + 2 * 64) + 8 * 5)]


def test_students_export():
    student = family_of(small_vit(), 2).eval().student(1)
    program = torch.export.export(student, (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    images = torch.randn(5, 3, SIZE, SIZE)
    torch.testing.assert_close(program.module()(images), student(images))


def test_buffers_outside_of_the_state_dict_stay_outside():
    class Shifted(ResNet):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.ones(1), persistent=False)
            self.register_buffer("factor", torch.ones(1))

        def forward(self, x):
            return super().forward(x * self.factor + self.shift)

    base = family_of(Shifted()).base
    assert "factor" in base.state_dict() and "shift" not in base.state_dict()
    assert base.shift.item() == 1


def test_shares_and_divisor_of_the_widths():
    family = StudentEnsemble.from_module(ResNet(lambda channels: 4 * channels), IMAGES, widths=(1, 0.55, 0.25))
    assert [family.architecture.map_channels(j, 3) for j in range(3)] == [(32, 64), (16, 32), (8, 16)]
    with pytest.raises(ValueError, match="width_divisor: expected at most 16, .* of ResNet, got 32"):
        family_of(ResNet(), width_divisor=32)


def test_describe_is_a_table_of_the_cut():
    assert family_of(ResNet()).describe().splitlines() == [
        "part     ends after  map    channels of students 1-3",
        "base     stem        16x16  8",
        "block 1  stages.0    16x16  8 5 2",
        "block 2  stages.1    8x8    16 10 5",
    ]
    whole = family_of(ResNet(), blocks=()).describe()
    assert whole == "ResNet: 3 whole networks, which share no base and return no maps"


@pytest.mark.parametrize(
    "module, images, error, message",
    [
        ("resnet18", IMAGES, TypeError, "module: expected a torch.nn.Module, got str"),
        (ResNet(), (IMAGES, IMAGES), TypeError, r"example_inputs: expected one tensor of images .*, got 2 inputs"),
        (ResNet(), IMAGES.double(), TypeError, "example_inputs: expected torch.float32, got torch.float64"),
        (ResNet(), IMAGES[0], ValueError, r"example_inputs: expected images \[B, C, H, W\], got shape \[3, 16, 16\]"),
        (ResNet(), IMAGES.to("meta"), ValueError, "example_inputs: expected images on cpu, as the module, got meta"),
        (ResNet(), IMAGES[:, :2], ValueError, r"example_inputs: ResNet fails on images \[2, 2, 16, 16\]: RuntimeError"),
        (ResNet().half(), IMAGES, TypeError, "module: expected weights of torch.float32, got torch.float16 in 'stem.w"),
        (
            ResNet().to("meta"),
            IMAGES,
            ValueError,
            "module: expected weights that have values, got 'stem.weight' on the",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(module, images, error, message):
    with pytest.raises(error, match=message) as raised:
        StudentEnsemble.from_module(module, images)
    assert "\n" not in str(raised.value)


def test_a_build_for_other_classes_or_channels_is_refused():
    architecture = family_of(ResNet()).architecture
    with pytest.raises(ValueError, match="num_classes: expected 5, as the module has, got 10"):
        StudentEnsemble(architecture, 3, 10, 3)
    with pytest.raises(ValueError, match="in_channels: expected 3, as the module has, got 1"):
        StudentEnsemble(architecture, 3, CLASSES, 1)
