"""Choose the image column and the label column of a table by names and types, or refuse to guess."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from oekd_fast.data.dataset import DataError
from oekd_fast.data.names import printable
from oekd_fast.data.readers.formats import image_suffixes

_KINDS = {
    **dict.fromkeys(("string", "large_string", "string_view"), "text"),
    **dict.fromkeys(("binary", "large_binary", "binary_view"), "bytes"),
    **{f"{sign}int{bits}": "integer" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixel_values")
# In order: a column of the first line is taken before one of the second, and so on.
LABEL_NAMES = (
    ("fine_label",),
    ("label",),
    (
        "labels", "class", "classes", "target", "targets", "category", "y", "class_id", "class_idx", "class_index",
        "class_label", "class_name", "label_id", "label_idx", "label_name", "category_id", "target_id",
    ),
)  # fmt: skip
# Names that number or describe a row. Names that end in "_id", "_idx" or "_index" are such names too.
ROW_NAMES = frozenset(
    ("id", "idx", "index", "uuid", "guid", "key", "__key__", "row", "row_number", "level_0", "unnamed: 0", "split",
     "fold", "width", "height", "size", "channels", "path", "file", "filename", "file_name", "file_path", "filepath",
     "image_path", "image_file", "image_file_name", "image_name", "url", "image_url", "md5", "sha1", "sha256", "hash",
     "phash", "timestamp", "caption")
)  # fmt: skip
ROW_ENDINGS = ("_id", "_idx", "_index", "_uuid", "_path", "_url", "_hash", "_filename", "_file_name")

COLUMNS_SHOWN, TYPE_LENGTH, VALUES_TRIED = 20, 60, 32


def kind_of(arrow: Any) -> str:
    """Return "text", "bytes" or "integer" for an Arrow type of any width, otherwise its name.

    The kind of a dictionary is that of its values.
    """
    plain = str(arrow)
    if plain.startswith("dictionary<"):
        return kind_of(arrow.value_type)
    return _KINDS.get(plain, plain)


def check_same_kind(path: Path, schema: Any, first: Any, column: str) -> None:
    """Raise DataError unless `schema`, of the file `path`, has a column of the same kind as the schema `first`."""
    expected = kind_of(first.field(column).type)
    got = schema.field(column).type if schema.names.count(column) == 1 else None
    if got is None or kind_of(got) != expected:
        raise DataError(
            f"{printable(path)}: expected a column {printable(repr(column))} of {expected[:TYPE_LENGTH]} as in the "
            f"first file of the split, got {'none' if got is None else str(got)[:TYPE_LENGTH]}"
        )


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: its name.
        arrow: its type in Arrow.
        hub: its type in the metadata of `datasets`, such as `{"_type": "ClassLabel", "names": [...]}`, or {}.
    """

    name: str
    arrow: Any
    hub: dict[str, Any]

    @cached_property
    def kind(self) -> str:
        """The kind of the values, see `kind_of`."""
        return kind_of(self.arrow)

    @property
    def is_text(self) -> bool:
        return self.kind == "text"

    @property
    def is_integer(self) -> bool:
        return self.kind == "integer"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes that the metadata gives, in the order of the labels; None without any."""
        return tuple(self.hub["names"]) if self._declares_classes else None

    def check_classes(self) -> None:
        """Raise DataError unless the metadata gives the names of the classes as different strings, if it gives any."""
        names = self.hub.get("names")
        strings = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if self._declares_classes and not (strings and len(set(names)) == len(names)):
            raise DataError(
                f"expected the names of the classes of column {self.label} as different strings, got other metadata"
            )

    @property
    def _declares_classes(self) -> bool:
        return self.hub.get("_type") == "ClassLabel" and self.is_integer

    @property
    def label(self) -> str:
        """The name in quotes, for messages."""
        return printable(repr(self.name))

    @property
    def holds_images(self) -> bool:
        """Whether the type is one in which encoded images are stored."""
        if self.hub.get("_type", "Value") not in ("Image", "Value"):  # "Audio" has the same fields as "Image"
            return False
        if self.hub.get("_type") == "Image" and self.is_text:
            return True
        return self.kind == "bytes" or self._has_image_fields

    @property
    def readable_as_image(self) -> bool:
        return self.holds_images or self.is_text or self.kind.startswith("fixed_size_binary")

    @property
    def readable_as_label(self) -> bool:
        return self.is_integer or self.is_text or self.kind == "bool"

    @property
    def _has_image_fields(self) -> bool:
        if not self.kind.startswith("struct<"):
            return False
        kinds = {field.name: kind_of(field.type) for field in self.arrow}
        content = kinds.get("bytes")
        return content == "bytes" or (kinds.get("path") == "text" and content in (None, "null"))

    def __str__(self) -> str:
        classes = f"ClassLabel of {len(self.classes)}" if self.classes else None
        kind = classes or ("Image" if self.hub.get("_type") == "Image" else str(self.arrow))
        return f"{self.label} ({printable(kind[:TYPE_LENGTH])}{'...' if len(kind) > TYPE_LENGTH else ''})"


@dataclass(frozen=True)
class Chosen:
    """The image column and the label column of a table.

    Args:
        image, label: the columns.
        named: whether the user or the registry named the label column.
    """

    image: Column
    label: Column
    named: bool


def columns_of(schema: Any) -> tuple[Column, ...]:
    """Return the columns of an Arrow schema; columns that pandas stored as an index are left out.

    Raises:
        DataError: two columns have the same name, or the metadata is not what `datasets` writes.
    """
    metadata = schema.metadata or {}
    features = _object(_object(_json(metadata, b"huggingface"), "info"), "features")
    index = _json(metadata, b"pandas").get("index_columns")
    index = [name for name in index if isinstance(name, str)] if isinstance(index, list) else []
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"expected columns with different names, got {printable(repr(schema.names))}")
    columns = [Column(field.name, field.type, _object(features, field.name)) for field in schema]
    for column in columns:
        column.check_classes()
    return tuple(column for column in columns if column.name not in index)


def choose_columns(
    where: str,
    columns: Sequence[Column],
    values: Callable[[str], Iterable[Any]],
    image: str | None,
    label: str | None,
) -> Chosen:
    """Choose the columns of a training table.

    Args:
        where: name of the table, for errors.
        columns: columns of the table.
        values: returns the values of a column.
        image, label: names of the columns; None chooses by name and type.

    Raises:
        DataError: a column is missing or of another kind, or the choice is in doubt; the message lists all columns.
    """
    choice = _Choice(where, columns, values)
    image_column = choice.image() if image is None else choice.named("image_column", image, "readable_as_image")
    if label is None:
        return Chosen(image_column, choice.label(image_column), named=False)
    return Chosen(image_column, choice.named("label_column", label, "readable_as_label"), named=True)


@dataclass(frozen=True)
class _Choice:
    where: str
    columns: Sequence[Column]
    values: Callable[[str], Iterable[Any]]

    def named(self, option: str, name: str, readable: str) -> Column:
        column = next((column for column in self.columns if column.name == name), None)
        kind = "an image column" if option == "image_column" else "a class label column"
        if column is None or not getattr(column, readable):
            raise DataError(f"{self.where}: expected {kind} {printable(repr(name))}, got the columns {self.table()}")
        return column

    def image(self) -> Column:
        found = [column for column in self.columns if column.holds_images]
        if not found:
            found = [column for column in self.columns if column.is_text and self._names_images(column)]
        if len(found) > 1:
            found = [column for column in found if _plain(column.name) in IMAGE_NAMES] or found
        return self._only(found, "an image column", "image_column")

    def label(self, image: Column) -> Column:
        others = [column for column in self.columns if column is not image]
        for names in LABEL_NAMES:
            found = [column for column in others if _plain(column.name) in names]
            if found:
                readable = [column for column in found if column.readable_as_label]
                if len(found) > len(readable):
                    self._refuse("a class label column of integers, strings or bools", "label_column")
                return self._only(found, "a class label column", "label_column")
        candidates = [column for column in others if column.readable_as_label and not _describes_row(column.name)]
        found = [column for column in candidates if column.classes] or [
            column for column in candidates if self._repeats(column) and not self._names_images(column)
        ]
        return self._only(found, "a class label column", "label_column")

    def table(self) -> str:
        """Return the names and types of all columns in one line."""
        shown = ", ".join(map(str, self.columns[:COLUMNS_SHOWN]))
        more = len(self.columns) - COLUMNS_SHOWN
        return f"{shown or 'none'}{f' and {more} more' if more > 0 else ''}"

    def _only(self, found: Sequence[Column], expected: str, option: str) -> Column:
        if len(found) == 1:
            return found[0]
        if not found:
            self._refuse(expected, option)
        candidates = ", ".join(column.label for column in found)
        raise DataError(
            f"{self.where}: expected one column that may be {expected}, got {candidates}; name it with {option}; "
            f"the columns are {self.table()}"
        )

    def _refuse(self, expected: str, option: str) -> None:
        raise DataError(f"{self.where}: expected {expected}, got the columns {self.table()}; {option} names another")

    def _names_images(self, column: Column) -> bool:
        """Return whether the first values of a text column are names of image files."""
        if not column.is_text:
            return False
        tried = []
        for value in self.values(column.name):
            if value is not None:
                tried.append(value)
            if len(tried) == VALUES_TRIED:
                break
        return bool(tried) and all(value.lower().endswith(image_suffixes()) for value in tried)

    def _repeats(self, column: Column) -> bool:
        """Return whether a column has several values, and at least two rows for each on average."""
        distinct, rows = set(), 0
        for value in self.values(column.name):
            distinct.add(value)
            rows += 1
        return 1 < len(distinct) <= rows / 2


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _describes_row(name: str) -> bool:
    plain = _plain(name)
    return plain in ROW_NAMES or plain.startswith(("__index_level_", "unnamed:")) or plain.endswith(ROW_ENDINGS)


def _json(metadata: dict[bytes, bytes], key: bytes) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(key, b"{}"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"expected JSON in the metadata {key.decode()!r}, got {type(error).__name__}") from error
    return value if isinstance(value, dict) else {}


def _object(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}
