"""Metadata of a saved student, and the JSON text that holds it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from oekd_fast import __version__
from oekd_fast.common.text import shortened
from oekd_fast.common.width_rule import WidthRule
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.models import width_rule_of

FORMAT_VERSIONS = (1, 2)
_WIDTH_FIELDS = frozenset(("shares", "width_divisor"))  # in format 2 only
LARGEST_IMAGE_SIZE = 4096  # pixels; readers make images of this size
_CHECKSUM_FIELD = "weights_sha256"
_SHOWN = 3
_SMALLEST_FLOAT, _LARGEST_FLOAT = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Normalisation:
    """Normalisation of images in [0, 1], (image - mean) / std, with one number per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class StudentMetadata:
    """Everything that is needed to build and use a student. The JSON file has these fields under the same names.

    Args:
        format_version: version of the file format; by default 1 for a student with the channels of the paper and 2 for
            others. Files of version 1 do not have the fields `shares` and `width_divisor`.
        model: name of the architecture.
        num_students: number of students of the family.
        index: number of the student in the family, from 1.
        in_channels: channels of the images.
        image_size: height and width of the training images in pixels.
        num_classes: number of logits.
        classes: name of each class.
        widths: channels of the student's feature maps, one per block.
        parameters: number of parameters of base and branch.
        accuracy: test accuracy in percent, or None if it was not measured.
        normalisation: statistics that `preprocess` uses.
        oekd_fast_version: version of the package that saved the student.
        shares: share of the channels of each student of the family, or None for (N - j) / N; see `WidthRule`.
        width_divisor: divisor of the channels of the family's students.

    Raises:
        ValueError: a field has another type or is out of range, or fields contradict each other; the message names the
            field.
    """

    format_version: int | None = None
    model: str
    num_students: int
    index: int
    in_channels: int
    image_size: int
    num_classes: int
    classes: tuple[str, ...]
    widths: tuple[int, ...]
    parameters: int
    accuracy: float | None
    normalisation: Normalisation
    oekd_fast_version: str = __version__
    shares: tuple[float, ...] | None = None
    width_divisor: int = 1

    def __post_init__(self) -> None:
        if self.format_version is None:
            object.__setattr__(self, "format_version", 1 if (self.shares, self.width_divisor) == (None, 1) else 2)
        for name in ("format_version", "num_students", "index", "in_channels", "image_size", "num_classes"):
            _check_integer(name, getattr(self, name), at_least=1)
        _check_integer("parameters", self.parameters, at_least=0)
        for name in ("model", "oekd_fast_version"):
            _check_type(name, getattr(self, name), str, "text")
        if self.index > self.num_students:
            raise ValueError(f"index: expected a number in 1..{self.num_students}, got {self.index}")
        if self.image_size > LARGEST_IMAGE_SIZE:
            raise ValueError(f"image_size: expected at most {LARGEST_IMAGE_SIZE} pixels, got {self.image_size}")
        _check_tuple("classes", self.classes, self.num_classes)
        for name in self.classes:
            _check_type("classes", name, str, "text in each entry")
        _check_tuple("widths", self.widths)
        for width in self.widths:
            _check_integer("widths", width, at_least=1)
        _check_type("normalisation", self.normalisation, Normalisation, "mean and std")
        for name in ("mean", "std"):
            values = getattr(self.normalisation, name)
            _check_tuple(f"normalisation.{name}", values, self.in_channels)
            for value in values:
                _check_finite(f"normalisation.{name}", value)
        if min(self.normalisation.std) < _SMALLEST_FLOAT:  # which would be 0 in float32
            raise ValueError(f"normalisation.std: expected numbers > 0, got {self.normalisation.std[:20]}")
        if self.accuracy is not None:
            _check_finite("accuracy", self.accuracy)
            if not 0 <= self.accuracy <= 100:
                raise ValueError(f"accuracy: expected a percentage in 0..100 or null, got {self.accuracy}")
        self._check_widths()

    def _check_widths(self) -> None:
        _check_integer("width_divisor", self.width_divisor, at_least=1)
        if self.shares is not None:
            _check_tuple("shares", self.shares, self.num_students)
            for share in self.shares:
                _check_finite("shares", share)
        try:
            rule = self.width_rule
        except ValueError as error:  # names `widths`, the option
            raise ValueError(f"shares: {str(error).removeprefix('widths: ')}") from error
        versions = FORMAT_VERSIONS if rule == WidthRule() else FORMAT_VERSIONS[1:]
        if self.format_version not in versions:
            expected = " or ".join(map(str, versions))
            raise ValueError(f"format_version: expected {expected} for these widths, got {self.format_version}")

    @property
    def width_rule(self) -> WidthRule:
        """The shares and the divisor of the channels of the family's students."""
        return WidthRule(self.shares, self.width_divisor)

    @classmethod
    def of(
        cls,
        ensemble: StudentEnsemble,
        j: int,
        *,
        image_size: int,
        classes: Sequence[str],
        normalisation: Normalisation,
        accuracy: float | None = None,
    ) -> StudentMetadata:
        """Return the metadata of student `j` of `ensemble`, counted from 0."""
        rule = width_rule_of(ensemble.architecture)
        if rule.is_default(ensemble.num_students):
            rule = WidthRule()
        return cls(
            model=ensemble.architecture.name,
            num_students=ensemble.num_students,
            index=j + 1,
            in_channels=ensemble.in_channels,
            image_size=image_size,
            num_classes=ensemble.num_classes,
            classes=tuple(classes),
            widths=ensemble.architecture.map_channels(j, ensemble.num_students),
            parameters=sum(p.numel() for p in ensemble.student(j).parameters()),
            accuracy=accuracy,
            normalisation=normalisation,
            shares=None if rule.shares is None else tuple(map(float, rule.shares)),
            width_divisor=rule.divisor,
        )


def dump_metadata(metadata: StudentMetadata, weights_sha256: str) -> bytes:
    """Return the content of the JSON file: `metadata` and the checksum of the file of weights."""
    document = {**_document(metadata), _CHECKSUM_FIELD: weights_sha256}
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def digest(metadata: StudentMetadata) -> str:
    """Return the SHA-256 of `metadata` in a canonical form, which the file of weights holds."""
    text = json.dumps(_document(metadata), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _document(metadata: StudentMetadata) -> dict[str, Any]:
    names = _fields_of(metadata.format_version)
    return {name: value for name, value in asdict(metadata).items() if name in names}


def _fields_of(version: int) -> set[str]:
    names = {field.name for field in fields(StudentMetadata)}
    return names - _WIDTH_FIELDS if version == 1 else names


def parse_metadata(content: bytes) -> tuple[StudentMetadata, str]:
    """Return the metadata in the content of a JSON file, and the checksum of the file of weights.

    Raises:
        ValueError: `content` is not what `dump_metadata` writes; the message names the field.
    """
    try:
        document = json.loads(content, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("not valid JSON (values are nested too deeply)") from error
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, got {type(document).__name__}")
    version = document.get("format_version")
    if type(version) is not int or version not in FORMAT_VERSIONS:
        raise ValueError(f"expected format_version {' or '.join(map(str, FORMAT_VERSIONS))}, got {_brief(version)}")
    expected = _fields_of(version) | {_CHECKSUM_FIELD}
    check_names(document.keys(), expected, f"the fields are not those of format {version}")
    checksum = document.pop(_CHECKSUM_FIELD)
    _check_type(_CHECKSUM_FIELD, checksum, str, "text")
    return _from_document(document), checksum


def check_names(names: Set[str], expected: Set[str], problem: str) -> None:
    """Raise ValueError, with `problem` and the first names that differ, unless both sets are equal."""
    missing, unexpected = sorted(expected - names), sorted(names - expected)
    if missing or unexpected:
        raise ValueError(f"{problem}; missing: {_first(missing)}; unexpected: {_first(unexpected)}")


def _from_document(document: Mapping[str, Any]) -> StudentMetadata:
    statistics = document["normalisation"]
    _check_type("normalisation", statistics, dict, "an object")
    check_names(statistics.keys(), {"mean", "std"}, "normalisation: expected mean and std")
    lists = {name: _as_tuple(name, document[name]) for name in ("classes", "widths")}
    if document.get("shares") is not None:
        lists["shares"] = _as_tuple("shares", document["shares"])
    of_channels = {name: _as_tuple(f"normalisation.{name}", values) for name, values in statistics.items()}
    return StudentMetadata(**{**document, **lists, "normalisation": Normalisation(**of_channels)})


def _as_tuple(name: str, value: object) -> tuple[Any, ...]:
    _check_type(name, value, list, "a list")
    return tuple(value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in content if names.count(name) > 1)!r} occurs twice")
    return content


def _refuse_constant(text: str) -> None:
    raise ValueError(f"expected finite numbers, got {text}")


def _check_type(name: str, value: object, kind: type, what: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name}: expected {what}, got {_brief(value)}")


def _check_integer(name: str, value: object, at_least: int) -> None:
    if type(value) is not int or value < at_least:
        raise ValueError(f"{name}: expected an integer >= {at_least}, got {_brief(value)}")


def _check_finite(name: str, value: object) -> None:
    if type(value) not in (int, float) or not abs(value) <= _LARGEST_FLOAT:  # False for NaN too
        raise ValueError(f"{name}: expected finite numbers, got {_brief(value)}")


def _check_tuple(name: str, values: object, length: int | None = None) -> None:
    if not isinstance(values, tuple):
        raise ValueError(f"{name}: expected a list, got {_brief(values)}")
    if length is not None and len(values) != length:
        raise ValueError(f"{name}: expected {length} entries, got {len(values)}")


def _brief(value: object) -> str:
    """Return a short text for `value`, which may be of any size."""
    if isinstance(value, list | tuple | dict):
        return type(value).__name__
    if isinstance(value, str):
        return shortened(repr(value[:40]), 40)
    return shortened(repr(value), 40)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(name[:80] for name in names[:_SHOWN]) or "none") + more
