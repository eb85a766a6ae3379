"""Numbers with units as people write them: 100k, 1.5M, 2MiB, and durations."""

from __future__ import annotations

import re
from decimal import Decimal

_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_FORM = re.compile(r"(\d+(?:\.\d+)?)\s?([A-Za-z]*)", re.ASCII)


def parse_count(text: str) -> int:
    """Return the number that `text` says, such as 100000, 100k, 1.5M or 2G.

    Raises:
        ValueError: `text` has another form, or is not a whole number >= 1.
    """
    return _parse(text, _FACTORS, "a number such as 100000, 100k or 1.5M")


def parse_bytes(text: str) -> int:
    """Return the bytes that `text` says: 500000, 500k, 500kB, 1.5M, 1.5MB (powers of 1000) or 2MiB (of 1024).

    Raises:
        ValueError: `text` has another form, or is not a whole number >= 1.
    """
    units = _FACTORS | _BINARY
    units |= {f"{unit}B": factor for unit, factor in units.items()}
    return _parse(text, units, "bytes such as 500000, 500kB, 1.5M or 2MiB")


def bytes_text(count: int) -> str:
    """Return a number of bytes in three digits and a decimal unit: "934 B", "41.9 kB", "1.09 MB"."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            value = count / factor
            return f"{three_digits(value)} {unit}"
    return f"{count} B"


def clock_text(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds, from a day on as days and hours: "0:04:32", "2 d 4 h"."""
    whole = round(seconds)
    if whole >= 86_400:
        days, hours = divmod(round(seconds / 3600), 24)
        return f"{days} d {hours} h"
    minutes, rest = divmod(whole, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def duration_text(seconds: float) -> str:
    """Return a duration in two digits below a minute, else as `clock_text` does: "0.17 s", "48 s", "0:03:20"."""
    if seconds >= 59.5:
        return clock_text(seconds)
    return f"{seconds:#.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"


def three_digits(value: float) -> str:
    """Return a number >= 0 in three digits, or more if it is 1,000 or larger: "0.0705", "1.20", "12,345"."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def _parse(text: str, units: dict[str, int], expected: str) -> int:
    match = _FORM.fullmatch(text.strip())
    factor = None if match is None else units.get(match[2])
    value = None if factor is None else Decimal(match[1]) * factor
    if value is None or value < 1 or value != value.to_integral_value():
        raise ValueError(f"expected {expected}, got {text!r}")
    return int(value)
