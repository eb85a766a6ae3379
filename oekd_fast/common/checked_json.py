"""JSON objects that carry a checksum of their content, so that a damaged number is not taken for a result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CHECKSUM_FIELD = "checksum"


def dump_checked(content: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Return the JSON text of `content` with the field "checksum" at its end.

    Args:
        content: values that JSON can hold, with strings as keys.
        indent: as in `json.dumps`.
    """
    plain = json.loads(json.dumps(content))  # tuples become lists, as they will be when the text is read
    return json.dumps({**plain, CHECKSUM_FIELD: _checksum(plain)}, indent=indent)


def load_checked(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object in `text` without its checksum. A text without one, of older versions, is not verified.

    Raises:
        ValueError: `text` is not a JSON object, or its content does not match its checksum.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("expected a JSON object, got values nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    stored = content.pop(CHECKSUM_FIELD, None)
    if stored is None:
        _check_last_name(content)
    elif stored != (found := _checksum(content)):
        raise ValueError(
            f"{CHECKSUM_FIELD}: expected {found}, got {stored!r}; remove this field from a file that was edited by hand"
        )
    return content


def _check_last_name(content: dict[str, Any]) -> None:
    """Raise ValueError if the last field is the checksum of the others under a damaged name."""
    if content:
        *others, (name, value) = content.items()
        if isinstance(value, str) and value == _checksum(dict(others)):
            raise ValueError(f"expected the field {CHECKSUM_FIELD!r}, got {name!r}")


def _checksum(content: Mapping[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of `content` in a canonical form."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
