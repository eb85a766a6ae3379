"""Names in a form that can be printed: one line of valid Unicode."""

import json
import os

import pytest

from oekd_fast.data.names import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("Käse 猫 \u200d", "Käse 猫 \u200d"),
        ("a\nb\x1b[31m\x7f", r"a\nb\x1b[31m\x7f"),
        ("a\u2028b", r"a\u2028b"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
    ],
)
def test_names_become_one_line_of_valid_unicode(name, shown):
    assert printable(name) == shown
    assert json.loads(json.dumps(printable(name), ensure_ascii=False).encode("utf-8")) == shown
