"""Exported students and families: what files compute, what they hold, and that the student stays as it is."""

import io

import onnx
import pytest
import torch

from oekd_fast import build_ensemble
from oekd_fast.family.saved import StudentMetadata, load_student, save_student
from oekd_fast.layers.fast_module import use_direct_convs, use_fused_norms
from oekd_fast.models import registry
from oekd_fast.training.compile_blocks import compile_blocks

from .files import ARCHITECTURE, CLASSES, NORMALISATION, SHAPE, metadata, normalised, random_pixels, run, trained_family

SUFFIXES = (".onnx", ".pt2")
OPTIONS = {"image_shape": SHAPE, "normalisation": NORMALISATION, "classes": CLASSES}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def family():
    return trained_family()


@pytest.fixture(scope="module")
def evaluated(family):
    """Logits of the students for 5 images, in evaluation mode."""
    family.eval()
    with torch.no_grad():
        logits = family(normalised(random_pixels(5))).logits
    family.train()
    return logits


@pytest.fixture(scope="module", params=SUFFIXES)
def exported(request, family, tmp_path_factory):
    """Student 2 of the family in training mode, in a file."""
    path = tmp_path_factory.mktemp("exported") / f"student{request.param}"
    return family.student(1).export(path, **OPTIONS)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_file_takes_pixels_of_any_number_of_images(exported, evaluated, count):
    logits = run(exported.path, random_pixels(5)[:count])
    assert list(logits) == ["logits"]
    torch.testing.assert_close(logits["logits"], evaluated[1][:count], rtol=0, atol=1e-5 * evaluated[1].abs().max())


def test_the_result_describes_the_file(exported):
    assert exported.size == exported.path.stat().st_size
    assert 0 <= exported.difference <= exported.tolerance == 1e-5


def test_a_file_says_what_it_is(exported):
    found = metadata(exported.path)
    assert found["classes"] == list(CLASSES)
    assert (found["mean"], found["std"]) == (list(NORMALISATION.mean), list(NORMALISATION.std))
    assert (found["input"], found["preprocessing"]) == ("uint8 [batch, 3, 8, 8]", "included")


def test_a_file_holds_no_path_of_the_machine_that_wrote_it(exported):
    content = exported.path.read_bytes()
    assert b"site-packages" not in content and b"oekd_fast/" not in content and b".py" not in content


def test_an_onnx_file_is_one_file_of_plain_operators(family, tmp_path):
    use_fused_norms(family)
    use_direct_convs(family)
    family.student(0).export(tmp_path / "a.onnx", **OPTIONS)
    use_fused_norms(family, False)
    use_direct_convs(family, False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    model = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}  # is part of the convolutions
    (images,), (logits,) = model.graph.input, model.graph.output
    assert [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim] == ["batch", *SHAPE]
    assert [dim.dim_param or dim.dim_value for dim in logits.type.tensor_type.shape.dim] == ["batch", len(CLASSES)]
    assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)


def test_the_student_and_the_random_state_stay_as_they_are(family, tmp_path):
    student = family.student(1)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):  # must not reach the exported network
        student.export(tmp_path / "a.pt2", **OPTIONS)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in student.modules())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_preprocessing_a_file_takes_normalised_images(family, evaluated, tmp_path, suffix):
    path = family.student(0).export(tmp_path / f"a{suffix}", preprocessing=False, image_shape=SHAPE).path
    logits = run(path, normalised(random_pixels(5)))["logits"]
    torch.testing.assert_close(logits, evaluated[0], rtol=0, atol=1e-5 * evaluated[0].abs().max())
    assert (metadata(path)["input"], metadata(path)["preprocessing"]) == ("float32 [batch, 3, 8, 8]", "none")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_number_of_images_can_be_fixed(family, evaluated, tmp_path, suffix):
    path = family.student(0).export(tmp_path / f"a{suffix}", batch=3, **OPTIONS).path
    logits = run(path, random_pixels(5)[:3])["logits"]
    torch.testing.assert_close(logits, evaluated[0][:3], rtol=0, atol=1e-5 * evaluated[0].abs().max())
    assert metadata(path)["input"] == "uint8 [3, 3, 8, 8]"
    with pytest.raises(Exception, match="(?i)index: 0 Got: 2 Expected: 3|size\\(\\)\\[0\\] == 3"):
        run(path, random_pixels(2))


def test_a_file_refuses_images_of_another_type(exported):
    with pytest.raises(Exception, match=r"Unexpected input data type|dtype mismatch"):
        run(exported.path, normalised(random_pixels(2)))


@pytest.mark.slow
@pytest.mark.parametrize(("gated", "suffix"), [(False, ".pt2"), (True, ".onnx")])
def test_a_family_returns_each_student_and_the_ensemble(tmp_path, gated, suffix):
    family = trained_family(gated=gated)
    path = family.export(tmp_path / f"a{suffix}", **OPTIONS).path
    assert family.training
    family.eval()
    with torch.no_grad():
        output, weights = family.forward_gated(normalised(random_pixels(5)))
    stacked = torch.stack(output.logits)
    ensemble = stacked.mean(dim=0) if weights is None else torch.einsum("bs,sbc->bc", weights, stacked)
    found = run(path, random_pixels(5))
    assert list(found) == ["logits_1", "logits_2", "ensemble"]
    for logits, expected in zip(found.values(), (*output.logits, ensemble), strict=True):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max())
    assert metadata(path)["students"] == [1, 2]


def test_members_of_a_family_keep_their_numbers(tmp_path):
    family = build_ensemble(ARCHITECTURE, 4, num_classes=4, members=(1, 3)).eval()
    path = family.export(tmp_path / "a.pt2", preprocessing=False, image_shape=SHAPE).path
    assert list(run(path, torch.zeros(2, *SHAPE))) == ["logits_2", "logits_4", "ensemble"]


def test_a_loaded_student_brings_size_statistics_and_metadata(family, evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_ARCHITECTURES", {**registry._ARCHITECTURES, "tiny": ARCHITECTURE})
    described = StudentMetadata.of(
        family, 1, image_size=8, classes=CLASSES, normalisation=NORMALISATION, accuracy=81.25
    )
    save_student(family.student(1), tmp_path / "student_2", described)
    student = load_student(tmp_path / "student_2")
    path = student.export(tmp_path / "a.pt2").path
    torch.testing.assert_close(run(path, student_pixels := random_pixels(5))["logits"], evaluated[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(student(student.preprocess(student_pixels)), evaluated[1])
    found = metadata(path)
    assert found["classes"] == list(CLASSES) and found["model"] == "tiny"
    assert (found["student"], found["num_students"], found["accuracy"], found["image_size"]) == (2, 2, 81.25, 8)


def test_compiled_blocks_are_exported_as_plain_operators(evaluated, tmp_path):
    family = trained_family()
    compile_blocks(family, ARCHITECTURE.block_type, backend="eager")
    path = family.student(1).export(tmp_path / "a.pt2", **OPTIONS).path
    torch.testing.assert_close(run(path, random_pixels(5))["logits"], evaluated[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_students_of_other_types_are_exported_in_float32(tmp_path, dtype):
    student = trained_family().student(1).to(dtype)
    path = student.export(tmp_path / "a.pt2", **OPTIONS).path
    assert next(student.parameters()).dtype == dtype
    logits = run(path, random_pixels(2))["logits"]
    expected = student.float().eval()(normalised(random_pixels(2)))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_students_can_be_exported_in_inference_mode(tmp_path):
    with torch.inference_mode():
        student = build_ensemble(ARCHITECTURE, 2, num_classes=4).student(0)
        assert student.export(tmp_path / "a.pt2", **OPTIONS).difference <= 1e-5


def test_a_file_replaces_another(family, tmp_path):
    (tmp_path / "a.pt2").write_bytes(b"another")
    result = family.student(1).export(tmp_path / "a.pt2", **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]
    assert (tmp_path / "a.pt2").stat().st_size == result.size


def test_the_output_of_a_family_is_a_tree_that_programs_can_hold(family):
    family.eval()
    images = normalised(random_pixels(2))
    program = torch.export.export(family, (images,))
    content = io.BytesIO()
    torch.export.save(program, content)
    content.seek(0)
    loaded = torch.export.load(content).module()(images)
    expected = family(images)
    family.train()
    assert type(loaded) is type(expected)
    assert all(map(torch.equal, loaded.logits, expected.logits))
    assert [len(maps) for maps in loaded.features] == [2, 2]
