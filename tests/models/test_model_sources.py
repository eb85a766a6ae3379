"""Networks by the text of the option --model."""

from pathlib import Path

import pytest
import torch

from oekd_fast import StudentEnsemble, load_student
from oekd_fast.family.saved import Normalisation, StudentMetadata, save_student
from oekd_fast.models import get_architecture
from oekd_fast.models.model_sources import Images, find_architecture, registered, runs_code

from ..support import own_nets
from ..support.torchvision_operators import declare_missing_operators

NETS = Path(own_nets.__file__)
IMAGES = Images(channels=1, size=8, classes=10)


def test_names_of_the_registry():
    assert registered("resnet20") is find_architecture("resnet20", IMAGES) is get_architecture("resnet20")


@pytest.mark.parametrize("function, projected", [("make", False), ("by_width", True)])
def test_a_function_of_a_file(function, projected):
    architecture = find_architecture(f"{NETS}:{function}", IMAGES)
    assert architecture.name == f"own_nets.py:{function}" and registered(f"{NETS}:{function}") is None
    assert [architecture.map_channels(j, 2) for j in range(2)] == [(8, 16), (4, 8)]
    branch = architecture.build_branch(1, 2, 10)
    shared = architecture.build_base(1)(torch.randn(2, 1, 8, 8))
    assert branch(shared)[0].shape == (2, 10)
    assert ("entry" in dict(branch.stages[0].named_children())) is projected


def test_an_architecture_of_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from oekd_fast.models import get_architecture\nnet = get_architecture('resnet20')\n")
    assert find_architecture(f"{file}:net", IMAGES) is get_architecture("resnet20")


def test_weights_of_the_largest_network_start_all_students(tmp_path):
    network = own_nets.make(10, 1)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    architecture = find_architecture(f"{NETS}:make", IMAGES, tmp_path / "w.pth")
    assert torch.equal(architecture.build_base(1).stem.weight, network.stem.weight)
    student = architecture.build_branch(1, 2, 10).classifier.head.weight
    rows = network.head.weight.t()
    assert all(any(torch.equal(column, row) for row in rows) for column in student.t())

    torch.save(own_nets.make(5, 1).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="initial_weights: .*w.pth does not fit Net") as raised:
        find_architecture(f"{NETS}:make", IMAGES, tmp_path / "w.pth")
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="initial_weights: expected none with .*by_width, which builds each student"):
        find_architecture(f"{NETS}:by_width", IMAGES, tmp_path / "w.pth")


@pytest.mark.parametrize(
    "model, error, message",
    [
        ("resnet2", ValueError, "model: 'resnet2' is unknown; did you mean"),
        ("nets.py", ValueError, r"model: expected a name such as resnet20, or timm:NAME .*, got 'nets.py'"),
        ("missing.py:make", FileNotFoundError, "model: missing.py is missing"),
        (f"{NETS}:mak", ValueError, "model: expected a function called 'mak' in .*own_nets.py, got none"),
        (f"{NETS}:number", ValueError, "model: expected a function called 'number' in .*own_nets.py, got int"),
        (f"{NETS}:asks", ValueError, "model: expected arguments among width, num_classes and in_channels .* 'depth'"),
        (f"{NETS}:fails", ValueError, "model: .*own_nets.py:fails raised OSError: no weights"),
        (f"{NETS}:text", TypeError, "model: expected a torch.nn.Module from .*own_nets.py:text, got str"),
        (f"{NETS}:three_classes", ValueError, "model: expected 10 logits of own_nets.py:three_classes, .* got 3"),
    ],
)
def test_texts_that_name_no_network_are_errors_of_one_line(model, error, message):
    with pytest.raises(error, match=message) as raised:
        find_architecture(model, IMAGES)
    assert "\n" not in str(raised.value)


def test_what_runs_code():
    assert [runs_code(model) for model in ("resnet20", "timm:resnet18", "a.py:b", "a.b:c", "x y")] == [
        False,
        False,
        True,
        True,
        False,
    ]


@pytest.mark.slow
def test_a_network_of_timm():
    declare_missing_operators()
    architecture = find_architecture("timm:test_resnet", Images(channels=1, size=32, classes=10))
    assert architecture.name == "timm:test_resnet" and architecture.image_shape == (1, 32, 32)
    full, half = architecture.map_channels(0, 2), architecture.map_channels(1, 2)
    assert half == tuple(channels // 2 for channels in full)
    with pytest.raises(ValueError, match="model: timm .* has no network 'resnet19'"):
        registered("timm:resnet19")
    with pytest.raises(ValueError, match="model: timm .* has no network 'hf-hub:"):
        registered("timm:hf-hub:somebody/network")


@pytest.mark.slow
def test_a_saved_student_of_timm_is_built_by_its_name(tmp_path):
    declare_missing_operators()
    family = StudentEnsemble(find_architecture("timm:test_resnet", Images(1, 32, 10)), 2, 10, 1).eval()
    metadata = StudentMetadata.of(
        family, 1, image_size=32, classes="0123456789", normalisation=Normalisation((0.5,), (0.5,))
    )
    path = save_student(family.student(1), tmp_path / "student_2", metadata, family.architecture)
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(load_student(path)(images), family.student(1)(images))

    file = path.with_suffix(".json")
    file.write_text(file.read_text().replace('"image_size": 32', '"image_size": 4096'))
    with pytest.raises(ValueError, match=r"image_size: expected at most 1024 for timm:test_resnet, got 4096"):
        load_student(path)
