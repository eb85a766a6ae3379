"""Check the fields of JSON objects that may come from a stranger, with errors that name the file and the field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from oekd_fast.common.text import shortened


class ReportError(ValueError):
    """A folder cannot be reported; the message names it and what is missing."""


class Fields:
    """Fields of a JSON object, whose errors name the file and the field."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self._content, self._where = content, where

    def check(self, name: str, expected: str, accepts: Callable[[Any], bool]) -> None:
        """Raise ReportError unless the field `name` exists and `accepts` returns True for its value."""
        if name not in self._content:
            raise ReportError(f"runs: {self._where}: {name}: expected {expected}, got nothing")
        value = self._content[name]
        if not accepts(value):
            raise ReportError(f"runs: {self._where}: {name}: expected {expected}, got {shortened(_shown(value), 60)}")

    def __contains__(self, name: str) -> bool:
        return name in self._content

    def part(self, name: str) -> Fields:
        """Return the fields of the object in the field `name`."""
        self.check(name, "an object", lambda value: isinstance(value, dict))
        return Fields(self._content[name], f"{self._where}: {name}")

    def entries(self, name: str, *, may_be_empty: bool = False) -> list[Fields]:
        """Return the fields of each object in the list of the field `name`."""
        self.check(name, "a list of objects", lambda value: (may_be_empty and value == []) or is_list_of_objects(value))
        return [Fields(entry, f"{self._where}: {name}[{i}]") for i, entry in enumerate(self._content[name])]

    def is_null(self, name: str) -> bool:
        """Return whether the field `name` is missing or null."""
        return self._content.get(name) is None


def _shown(value: Any) -> str:
    """Return a part of the JSON text of `value`, which may be large or deeply nested."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    return json.dumps(value)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number that a float can hold."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def is_percentage(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 100


def is_percentage_or_null(value: Any) -> bool:
    return value is None or is_percentage(value)


def is_count(value: Any, most: int = 2**53) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def is_object_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_text, value.values()))


def is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def is_list(value: Any, length: int, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(value, Sequence) and len(value) == length and all(map(accepts, value))
