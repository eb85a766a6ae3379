"""Sections of the config: frozen dataclasses whose fields carry their bounds and check themselves."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Bound:
    """A condition on the value of a field.

    Args:
        expected: completes the error message "name: expected ...".
        accepts: returns whether a value satisfies the condition; called with values of type `kind` only.
        kind: Integral, Real or another type that values must have.
    """

    expected: str
    accepts: Callable[[Any], bool]
    kind: type = Real


def at_least(least: int, noun: str = "an integer") -> Bound:
    """Return the bound of integers >= `least`."""
    return Bound(f"{noun} >= {least}", lambda value: value >= least, Integral)


def between(least: int, most: int, noun: str = "an integer") -> Bound:
    """Return the bound of integers from `least` to `most`."""
    return Bound(f"{noun} >= {least} and <= {most}", lambda value: least <= value <= most, Integral)


def finite() -> Bound:
    """Return the bound of finite numbers."""
    return Bound("a finite number", math.isfinite)


def positive() -> Bound:
    """Return the bound of finite numbers > 0."""
    return Bound("a finite number > 0", lambda value: math.isfinite(value) and value > 0)


def nonnegative() -> Bound:
    """Return the bound of finite numbers >= 0."""
    return Bound("a finite number >= 0", lambda value: math.isfinite(value) and value >= 0)


def within(interval: str) -> Bound:
    """Return the bound of numbers in `interval`, written as "[0, 1)": a bracket includes the end, a parenthesis does
    not."""
    low, high = (float(end) for end in interval[1:-1].split(","))

    def accepts(value: float) -> bool:
        above = low <= value if interval[0] == "[" else low < value
        return above and (value <= high if interval[-1] == "]" else value < high)

    return Bound(f"a number in {interval}", accepts)


def setting(default: Any, bound: Bound | None = None, *, unset: str | None = None) -> Any:
    """Return a dataclass field with a bound.

    Args:
        default: the field's default. If it is None, None is accepted besides the values within the bound.
        bound: checked when a section is constructed.
        unset: says what happens while the field is None, for ``--help``: "the images' own size".
    """
    return field(default=default, metadata={"bound": bound, "unset": unset})


@dataclass(frozen=True, kw_only=True)
class Section:
    """Base class of the sections; constructing one converts and checks its values.

    Strings become paths in fields of type Path, where a leading ``~`` is expanded, and lists become tuples in fields of
    type tuple.

    Raises:
        ValueError: a value is outside its field's choices or bound, or contradicts another value.
        TypeError: a value has the wrong type.
    """

    def __post_init__(self) -> None:
        for name, converted in _conversions(self):
            object.__setattr__(self, name, converted)
        for item in fields(self):
            value, hint, bound = getattr(self, item.name), _hints(type(self))[item.name], item.metadata.get("bound")
            if value is None and item.default is None:
                continue
            _check_choice(item.name, value, hint)
            _check_kind(item.name, value, hint)
            if bound is not None:
                _check_bound(item.name, value, bound)
        self.check()

    def check(self) -> None:
        """Raise ValueError if two values contradict each other; subclasses extend it and call ``super().check()``."""


def choices(hint: Any) -> tuple[str, ...]:
    """Return the values of a Literal type, or of one or None, and () for any other type."""
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


@cache
def _hints(section: type[Section]) -> dict[str, Any]:
    return get_type_hints(section)


def _conversions(section: Section) -> list[tuple[str, Any]]:
    found = []
    for name, hint in _hints(type(section)).items():
        value = getattr(section, name)
        if Path in (hint, *get_args(hint)) and isinstance(value, (str, os.PathLike)):
            found.append((name, Path(os.path.expanduser(value))))  # leaves the name of an unknown user as it is
        elif tuple in map(get_origin, (hint, *get_args(hint))) and isinstance(value, list):
            found.append((name, tuple(value)))
    return found


def _check_choice(name: str, value: Any, hint: Any) -> None:
    values = choices(hint)
    if not values or value in values:
        return
    near = get_close_matches(str(value), values)
    suggestion = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"{name}: {suggestion}expected one of {', '.join(values)}, got {value!r}")


def _check_kind(name: str, value: Any, hint: Any) -> None:
    """Raise TypeError unless `value` has the type of a field that has no bound: a name, a switch or a path."""
    for kind, noun in ((str, "a string"), (bool, "True or False"), (Path, "a path")):
        if kind in (hint, *get_args(hint)) and not choices(hint) and not isinstance(value, kind):
            raise TypeError(f"{name}: expected {noun}, got {value!r}")


def _check_bound(name: str, value: Any, bound: Bound) -> None:
    if not isinstance(value, bound.kind) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {bound.expected}, got {value!r}")
    try:
        accepted = bound.accepts(value)
    except TypeError as error:  # an element of a tuple is not a number
        raise TypeError(f"{name}: expected {bound.expected}, got {value!r}") from error
    except OverflowError:  # an integer that is too large for a float
        accepted = False
    if not accepted:
        raise ValueError(f"{name}: expected {bound.expected}, got {value}")
