"""Helpers of the tests of reports: changing the files of a run, and reading a page."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rich.console import Console

from oekd_fast.common.checked_json import load_checked
from oekd_fast.report import ReportConfig, report
from oekd_fast.reporting import pictures

QUIET = Console(quiet=True)


def change(file: Path, **fields) -> None:
    """Set fields of a JSON file; a checksum is removed, as an attacker would."""
    file.write_text(json.dumps(load_checked(file.read_text()) | fields))


def change_lines(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Apply `edit` to each line of metrics.jsonl."""
    lines = [load_checked(line) for line in file.read_text().splitlines()]
    for line in lines:
        edit(line)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def draw_nothing(monkeypatch) -> None:
    """Have pages show empty pictures, since drawing takes most of the time."""
    empty = '<svg role="img" aria-label="a picture" viewBox="0 0 4 3"></svg>', b"a picture"
    monkeypatch.setattr(pictures, "drawn", lambda draw, description: empty)


def page_of(*runs: Path, **options) -> str:
    options = {"with_data": True, "images": 2} | options
    return report(ReportConfig(runs=runs, device="cpu", **options), QUIET).read_text()


class Checker(HTMLParser):
    """Parser that collects all tags and addresses, and the tags that are not closed."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.addresses, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
