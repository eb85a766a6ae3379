"""Check the parts of a summary that say what students cost in use; older versions have none of them."""

from __future__ import annotations

from typing import Any

from oekd_fast.latency.result import RUNTIMES
from oekd_fast.reporting.fields import Fields, is_count, is_list, is_number, is_text

_MOST_ROWS = 100
_LONGEST_NAME = 20  # characters of the type of a device


def check_latency(summary: Fields) -> None:
    """Check sizes and latencies in summary.json.

    Raises:
        ReportError: a field has another type or value than a run writes.
    """
    for number, student in enumerate(summary.entries("students"), start=1):
        _check_network(student, number)
    if not summary.is_null("ensemble"):
        ensemble = summary.part("ensemble")
        ensemble.check("parameters", "an integer >= 1", is_count)
        ensemble.check("flops", "a number > 0", _is_positive)
        _check_network(ensemble, 1)
    if not summary.is_null("latency"):
        facts = summary.part("latency")
        facts.check("machine", "an object of strings and numbers", _is_machine)
        facts.check("image_shape", "a list of 3 integers >= 1", lambda value: is_list(value, 3, is_count))
        facts.check("seconds", "a number >= 0", lambda value: is_number(value) and value >= 0)
        facts.check("notes", f"a list of at most {_MOST_ROWS} strings", _is_list_of_texts)


def _check_network(network: Fields, number: int) -> None:
    """Check one student, the one with the given number, or the ensemble."""
    if not network.is_null("file_bytes"):
        network.check("file_bytes", "an integer >= 1", is_count)
    if network.is_null("latency"):
        return
    network.check("latency", f"a list of at most {_MOST_ROWS} objects", _is_short_list)
    for row in network.entries("latency", may_be_empty=True):
        row.check("runtime", f"one of {', '.join(RUNTIMES)}", lambda value: is_text(value) and value in RUNTIMES)
        row.check("device", "the type of a device", lambda value: is_text(value) and len(value) <= _LONGEST_NAME)
        row.check("threads", "an integer >= 1 or null", lambda value: value is None or is_count(value))
        for name in ("batch", "calls"):
            row.check(name, "an integer >= 1", is_count)
        for name in ("median_ms", "p95_ms"):
            row.check(name, "a number > 0", _is_positive)
        row.check("not_faster_than", "a list of larger students", lambda value: _is_list_of_larger(value, number))


def _is_list_of_larger(value: Any, number: int) -> bool:
    return isinstance(value, list) and len(value) < number and all(is_count(larger, number - 1) for larger in value)


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_short_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_ROWS


def _is_list_of_texts(value: Any) -> bool:
    return _is_short_list(value) and all(map(is_text, value))


def _is_machine(value: Any) -> bool:
    return isinstance(value, dict) and all(v is None or is_text(v) or is_number(v) for v in value.values())
