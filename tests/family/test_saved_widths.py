"""Files of students with explicit shares or channels in multiples: format 2."""

import json
import re

import pytest
import torch

from oekd_fast import FunctionalArchitecture, build_ensemble
from oekd_fast.family.saved import StudentMetadata, load_student, save_student
from oekd_fast.models import get_architecture, with_widths

from .student_files import describe, edit

SHARES = (1, 0.75, 0.5, 0.25)


@pytest.fixture(scope="module")
def family():
    torch.manual_seed(0)
    return build_ensemble("resnet20", num_classes=7, widths=SHARES, width_divisor=8).eval()


@pytest.fixture
def student_2(tmp_path, family):
    return save_student(family.student(1), tmp_path / "student_2", describe(family, 1))


@pytest.mark.parametrize("j", range(4))
def test_a_loaded_student_computes_the_same_logits(tmp_path, family, j):
    images = torch.randn(2, 3, 8, 8)
    metadata = describe(family, j)
    loaded = load_student(save_student(family.student(j), tmp_path / "student", metadata))
    assert torch.equal(loaded(images), family.student(j)(images))
    assert loaded.metadata == metadata
    assert (metadata.format_version, metadata.shares, metadata.width_divisor) == (2, SHARES, 8)


def test_the_json_file_has_the_shares_and_the_divisor(student_2):
    document = json.loads(student_2.with_suffix(".json").read_text())
    assert document["format_version"] == 2
    assert document["num_students"] == 4
    assert document["widths"] == [12, 24, 48]
    assert document["shares"] == [1, 0.75, 0.5, 0.25]
    assert document["width_divisor"] == 8


@pytest.mark.parametrize("options", [{}, {"widths": (1, 0.8, 0.6, 0.4, 0.2)}, {"width_divisor": 1}])
def test_the_channels_of_the_paper_keep_format_1(tmp_path, options):
    torch.manual_seed(0)
    family = build_ensemble("resnet20", num_classes=7, **options).eval()
    path = save_student(family.student(2), tmp_path / "student_3", describe(family, 2))
    document = json.loads(path.with_suffix(".json").read_text())
    assert document["format_version"] == 1
    assert not document.keys() & {"shares", "width_divisor"}
    torch.manual_seed(0)
    plain = build_ensemble("resnet20", num_classes=7).eval()
    other = save_student(plain.student(2), tmp_path / "plain", describe(plain, 2))
    assert path.read_bytes() == other.read_bytes()


def test_shares_that_are_no_decimals_are_rebuilt_exactly(tmp_path):
    family = build_ensemble("resnet20", num_classes=7, widths=(1, 2 / 3, 1 / 3)).eval()
    path = save_student(family.student(1), tmp_path / "student_2", describe(family, 1))
    assert load_student(path).metadata.widths == (10, 21, 42)
    explicit = build_ensemble("resnet20", num_classes=7, widths=(1, 1 / 3)).eval()
    path = save_student(explicit.student(1), tmp_path / "student_2", describe(explicit, 1))
    assert load_student(path).metadata.widths == (5, 10, 21)


def test_a_network_of_your_own_takes_the_widths_of_the_file(tmp_path):
    own = FunctionalArchitecture(
        "own",
        lambda channels: torch.nn.Conv2d(channels, 4, 1),
        lambda width: [torch.nn.Conv2d(4, width(40), 3, padding=1)],
        torch.nn.Linear,
    )
    images = torch.randn(2, 3, 8, 8)
    for architecture in (own, with_widths(own, (1, 0.3), 4)):
        family = build_ensemble(own, num_classes=7, widths=(1, 0.7), width_divisor=8).eval()
        path = save_student(family.student(1), tmp_path / "student_2", describe(family, 1), architecture)
        assert torch.equal(load_student(path, architecture)(images), family.student(1)(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": [1, 0.5]}, "shares: expected 4 entries, got 2"),
        ({"shares": [1, 0.75, 0.8, 0.25]}, "shares: expected shares in descending order, got 0.8 after 0.75"),
        ({"shares": [1, 0.75, 0.5, -1]}, r"shares: expected shares in \(0, 1\], got -1"),
        ({"shares": [1, 0.75, 0.5, "0.25"]}, "shares: expected finite numbers, got '0.25'"),
        ({"shares": [True, 0.75, 0.5, 0.25]}, "shares: expected finite numbers, got True"),
        ({"shares": 1}, "shares: expected a list, got 1"),
        ({"shares": [1, 0.7, 0.5, 0.25]}, r"widths: expected \[11, 24, 48\], as resnet20 has, got \[12, 24, 48\]"),
        ({"shares": None}, "changed after it was saved"),  # describes the same network
        ({"shares": None, "num_students": 3}, r"widths: expected \[10, 24, 40\], as resnet20 has, got"),
        ({"shares": ...}, "the fields are not those of format 2; missing: shares"),
        ({"width_divisor": 0}, "width_divisor: expected an integer >= 1, got 0"),
        ({"width_divisor": "8"}, "width_divisor: expected an integer >= 1, got '8'"),
        ({"width_divisor": 10**400}, "changed after it was saved"),
        ({"format_version": 1}, "the fields are not those of format 1; .*unexpected: shares, width_divisor"),
    ],
)
def test_widths_that_do_not_describe_the_student_are_rejected(student_2, changes, message):
    edit(student_2.with_suffix(".json"), **changes)
    with pytest.raises(ValueError, match=rf"student_2\.json: .*({message})") as error:
        load_student(student_2)
    assert str(error.value).isprintable() and len(str(error.value)) < 600


def test_version_1_has_no_widths(family):
    metadata = describe(family, 1)
    fields = {name: getattr(metadata, name) for name in StudentMetadata.__dataclass_fields__}
    message = "format_version: expected 2 for these widths, got 1"
    with pytest.raises(ValueError, match=re.escape(message)):
        StudentMetadata(**{**fields, "format_version": 1})
    assert StudentMetadata(**{**fields, "format_version": None}).format_version == 2
    assert get_architecture("resnet20").map_channels(1, 5) == (12, 25, 51)  # the registered one is unchanged
