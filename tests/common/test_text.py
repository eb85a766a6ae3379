"""Names from data are shown in every kind of output and have no effect in it."""

import io
import sys
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from oekd_fast.common.text import (
    encodable,
    html_text,
    markdown_text,
    plain,
    print_line,
    replace_unencodable_output,
    shortened,
)

from ..support.hostile_names import HOSTILE_NAMES

hostile = pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cat", "cat"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("caf\udce9 \ud800", r"caf\xe9 \ud800"),
        ("\u202egnp.exe\u2028", r"\u202egnp.exe\u2028"),
        ("naïve 猫 \N{WOMAN}\u200d\N{PERSONAL COMPUTER}", "naïve 猫 \N{WOMAN}\u200d\N{PERSONAL COMPUTER}"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        (12, "12"),
    ],
)
def test_plain_shows_what_a_terminal_would_interpret(value, text):
    assert plain(value) == text


@hostile
def test_plain_text_is_one_visible_line_that_can_be_encoded(name):
    text = plain(name)
    assert text.splitlines() == [text] and text.isprintable()
    assert text.encode().decode() == text == plain(text)


def test_shortened_text_has_at_most_the_given_length():
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"
    assert shortened("\x1b" * 10, 6) == r"\x1b\…"


class Parsed(HTMLParser):
    """Tags and attributes of an HTML text, and its character data."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.data = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, attributes))

    def handle_data(self, data):
        self.data += data


@hostile
def test_html_text_is_data_in_elements_and_attributes(name):
    parsed = Parsed(f"<p title=\"{html_text(name)}\" alt='{html_text(name)}'>{html_text(name)}</p>")
    assert parsed.tags == [("p", [("title", plain(name)), ("alt", plain(name))])]
    assert parsed.data == plain(name)


@hostile
def test_markdown_text_is_text_in_paragraphs_headings_and_tables(name):
    shown = markdown_text(name)
    document = f"# x{shown}\n\nx{shown}\n\n| x{shown} | b |\n| --- | --- |\n| x{shown} | b |\n"
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(document)
    texts = [token for token in tokens if token.type == "inline" and token.content != "b"]
    assert len(texts) == 4
    for inline in texts:
        assert {token.type for token in inline.children} <= {"text", "text_special"}
        assert "".join(token.content for token in inline.children) == "x" + plain(name).rstrip()


@hostile
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_a_line_on_a_console_is_the_text_as_it_is(name, encoding):
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding), width=10, force_terminal=True)
    print_line(console, name)
    console.file.flush()
    written = raw.getvalue().decode(encoding)
    assert written == encodable(plain(name), encoding) + "\n"


def test_a_path_is_printed_as_it_is_so_that_it_can_be_copied():
    output = io.StringIO()
    print_line(Console(file=output, width=20), "Run folder: runs/a b/run[lr=0.1]/:smile:/" + "x" * 50)
    assert output.getvalue() == "Run folder: runs/a b/run[lr=0.1]/:smile:/" + "x" * 50 + "\n"


@pytest.mark.parametrize(("errors", "expected"), [("strict", b"a?b"), ("xmlcharrefreplace", b"a&#8230;b")])
def test_standard_output_replaces_what_it_cannot_encode(errors, expected, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", errors))
    replace_unencodable_output()
    print("a…b", end="", flush=True)
    assert raw.getvalue() == expected


def test_a_process_without_standard_output_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    replace_unencodable_output()
