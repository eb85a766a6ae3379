import copy
from functools import partial

import pytest
import torch
from torch import nn

from oekd_fast.family.ensemble import EnsembleOutput, StudentEnsemble, build_ensemble, channels_of_base
from oekd_fast.models import FunctionalArchitecture, cifar_resnet, get_architecture

PARAMETERS = {
    "resnet20": [272_474, 171_536, 97_018, 42_231, 10_773],
    "resnet32": [466_906, 293_560, 165_442, 71_555, 17_745],
    "resnet44": [661_338, 415_584, 233_866, 100_879, 24_717],
    "resnet56": [855_770, 537_608, 302_290, 130_203, 31_689],
    "resnet110": [1_730_714, 1_086_716, 610_198, 262_161, 63_063],
}


@pytest.fixture
def ensemble():
    torch.manual_seed(0)
    return build_ensemble("resnet20")


@pytest.fixture
def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def count(parameters):
    return sum(p.numel() for p in parameters)


@pytest.mark.parametrize("model", PARAMETERS)
def test_parameter_counts_equal_those_of_the_paper(model):
    ensemble = build_ensemble(model)
    assert ensemble.parameter_counts() == PARAMETERS[model]
    assert count(ensemble.adapter_parameters()) == 10_976


def test_output_has_one_entry_per_student(ensemble, images):
    output = ensemble(images)
    assert isinstance(output, EnsembleOutput)
    assert [tuple(z.shape) for z in output.logits] == [(4, 10)] * 5
    assert [tuple(m.shape[1] for m in maps) for maps in output.features] == [
        (16, 32, 64), (12, 25, 51), (9, 19, 38), (6, 12, 25), (3, 6, 12)
    ]  # fmt: skip


def test_adapters_map_every_student_to_the_pseudo_teacher(ensemble, images):
    features = ensemble(images).features
    for b, adapters in enumerate(ensemble.adapters):
        assert len(adapters) == 4
        for j in range(1, 5):
            adapter = adapters[j - 1]
            assert isinstance(adapter, nn.Conv2d) and adapter.kernel_size == (1, 1) and adapter.bias is not None
            assert adapter(features[j][b]).shape == features[0][b].shape


def test_adapters_exist_before_the_first_forward(ensemble):
    in_state_dict = {name for name in ensemble.state_dict() if name.startswith("adapters.")}
    assert in_state_dict == {f"adapters.{b}.{i}.{p}" for b in range(3) for i in range(4) for p in ("weight", "bias")}
    assert in_state_dict <= {name for name, _ in ensemble.named_parameters()}


def test_network_and_adapter_parameters_are_all_parameters(ensemble):
    groups = [*ensemble.network_parameters(), *ensemble.adapter_parameters()]
    assert [id(p) for p in groups] == [id(p) for p in ensemble.parameters()]


def test_evaluation_mode_applies_to_all_students_and_keeps_statistics(ensemble, images):
    ensemble(images)
    before = copy.deepcopy(ensemble.state_dict())
    ensemble.eval()
    assert not any(module.training for module in ensemble.modules())
    with torch.no_grad():
        ensemble(images * 3 + 1)
        for j in ensemble.members:
            ensemble.student(j)(images * 3 + 1)
    after = ensemble.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_training_step_updates_the_statistics_of_all_students_once(ensemble, images):
    ensemble(images)
    tracked = [m.num_batches_tracked.item() for m in ensemble.modules() if isinstance(m, nn.BatchNorm2d)]
    assert set(tracked) == {1}


def test_gradients_of_every_student_reach_the_base(ensemble, images):
    for j in range(5):
        ensemble.zero_grad(set_to_none=True)
        ensemble(images).logits[j].square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in ensemble.base.parameters())
        has_gradient = [any(p.grad is not None for p in branch.parameters()) for branch in ensemble.branches]
        assert has_gradient == [i == j for i in range(5)]


def test_a_student_alone_computes_its_logits_of_the_family(ensemble, images):
    ensemble.eval()
    output = ensemble(images)
    for j in range(5):
        assert torch.equal(ensemble.student(j)(images), output.logits[j])


def test_a_student_shares_parameters_and_training_mode_with_the_family(ensemble):
    student = ensemble.student(2)
    assert {id(p) for p in student.parameters()} <= {id(p) for p in ensemble.parameters()}
    ensemble.eval()
    assert not any(m.training for part in student.children() for m in part.modules())
    assert not ensemble.student(2).training
    ensemble.train()
    assert all(m.training for m in ensemble.student(2).modules())


def test_a_copied_student_is_independent(ensemble, images):
    student = copy.deepcopy(ensemble.student(3)).eval()
    assert all(m.training for m in ensemble.modules())
    before = student(images)
    with torch.no_grad():
        for p in ensemble.parameters():
            p.zero_()
    assert torch.equal(student(images), before)


@pytest.mark.slow
def test_a_student_can_be_exported_with_a_dynamic_batch_size(ensemble, images):
    student = ensemble.student(4).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(student, (images,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(images[:3]), student(images[:3]))


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_forward_compiles_to_one_graph(images, training):
    one_block_a_stage = partial(cifar_resnet._stages, 1)
    resnet8 = FunctionalArchitecture("resnet8", cifar_resnet._base, one_block_a_stage, nn.Linear)
    ensemble = build_ensemble(resnet8, num_students=2).train(training)
    torch.compiler.reset()
    compiled = torch.compile(ensemble, fullgraph=True, backend="eager")
    assert all(map(torch.equal, compiled(images).logits, ensemble(images).logits))


@pytest.mark.parametrize("j", range(5))
def test_a_family_of_one_has_that_student_only(j, images):
    ensemble = build_ensemble("resnet20", members=(j,)).eval()
    assert ensemble.parameter_counts() == [PARAMETERS["resnet20"][j]]
    assert count(ensemble.parameters()) == PARAMETERS["resnet20"][j]
    assert len(ensemble.adapters) == 0
    assert torch.equal(ensemble(images).logits[0], ensemble.student(j)(images))


def test_adapters_exist_only_with_the_pseudo_teacher_among_the_members(images):
    with_teacher = build_ensemble("resnet20", members=(0, 2, 4))
    features = with_teacher(images).features
    for b in range(3):
        for i in (1, 2):
            assert with_teacher.adapters[b][i - 1](features[i][b]).shape == features[0][b].shape
    assert [adapter.in_channels for adapter in with_teacher.adapters[0]] == [9, 3]
    assert len(build_ensemble("resnet20", members=(1, 2)).adapters) == 0


def test_a_family_without_adapters_is_the_same_family_without_their_parameters(images):
    torch.manual_seed(0)
    bare = build_ensemble("resnet20", adapters=False)
    torch.manual_seed(0)
    full = build_ensemble("resnet20")
    assert len(bare.adapters) == 0 and list(bare.adapter_parameters()) == []
    expected = {name: tensor for name, tensor in full.state_dict().items() if not name.startswith("adapters.")}
    assert bare.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in bare.state_dict().items())
    assert all(map(torch.equal, bare.eval()(images).logits, full.eval()(images).logits))


def test_every_parameter_of_a_family_without_adapters_learns_from_the_logits(images):
    ensemble = build_ensemble("resnet20", num_students=2, adapters=False)
    sum(z.square().sum() for z in ensemble(images).logits).backward()
    assert all(p.grad is not None for p in ensemble.parameters())


def test_hints_without_adapters_are_refused():
    with pytest.raises(ValueError, match=r"hint_channels: expected None with adapters=False, got \(16, 32, 64\)"):
        build_ensemble("resnet20", hint_channels=(16, 32, 64), adapters=False)


def test_the_gate_is_computed_from_the_same_base_as_the_students(images):
    torch.manual_seed(0)
    ensemble = build_ensemble("resnet20", num_students=2, gated=True)
    reference = copy.deepcopy(ensemble)
    output, gate = ensemble.forward_gated(images)
    assert all(map(torch.equal, output.logits, reference(images).logits))
    assert ensemble.base[1].num_batches_tracked == 1
    assert torch.equal(gate, copy.deepcopy(reference).gate(reference.base(images)))
    assert gate.shape == (4, 2) and gate.dtype == torch.float32
    assert build_ensemble("resnet20", num_students=2).forward_gated(images)[1] is None


def test_other_numbers_of_students_classes_and_channels():
    ensemble = build_ensemble("resnet20", num_students=2, num_classes=100, in_channels=1)
    output = ensemble(torch.randn(2, 1, 4, 4, requires_grad=True))
    assert [tuple(z.shape) for z in output.logits] == [(2, 100)] * 2
    assert [m.shape[1] for m in output.features[1]] == [8, 16, 32]


def test_state_dict_restores_the_outputs(ensemble, images):
    other = build_ensemble("resnet20")
    ensemble(images)
    other.load_state_dict(ensemble.state_dict())
    assert all(map(torch.equal, other.eval()(images).logits, ensemble.eval()(images).logits))


@pytest.mark.parametrize("name", ["num_students", "num_classes", "in_channels"])
@pytest.mark.parametrize("value", [0, -3, 2.0])
def test_numbers_below_one_are_rejected(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected an integer >= 1, got {value}"):
        build_ensemble("resnet20", **{name: value})


@pytest.mark.parametrize("members", [(), (5,), (-1, 0), (1, 1), (2, 1)])
def test_invalid_members_are_rejected(members):
    with pytest.raises(ValueError, match=r"members: expected distinct student indices in 0\.\.4.* got \("):
        StudentEnsemble(get_architecture("resnet20"), members=members)


def test_a_student_that_is_not_a_member_is_rejected():
    with pytest.raises(ValueError, match=r"j: expected one of the members \(0, 2\), got 1"):
        build_ensemble("resnet20", members=(0, 2)).student(1)


def test_an_unknown_model_is_rejected():
    with pytest.raises(ValueError, match="did you mean resnet20"):
        build_ensemble("resnet_20")


def test_channels_of_a_base_are_counted_without_memory_for_an_image():
    base = build_ensemble("resnet20", 1).base
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    assert channels_of_base(base, 3, (2**20, 2**20)) == 16
    assert base.training and all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
