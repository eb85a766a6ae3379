"""Show names from data, such as class names, paths and names of data sets, in terminals, figures, HTML and Markdown.

Such names are arbitrary text: they may hold control characters, markup, or bytes that are not UTF-8. Every function
here returns text in which they are shown and have no effect.
"""

from __future__ import annotations

import html
import re
import sys
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Control characters, format characters, surrogates, and line and paragraph separators.
_ESCAPED_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Format characters that scripts and emoji need between two letters; all others are invisible or reorder text.
_JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
# What starts markup within a line of Markdown. An underscore between two letters is not markup.
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)|:(?=//))")


def plain(value: object) -> str:
    r"""Return ``str(value)`` as one line of visible characters.

    Control characters, line breaks and format characters, which start terminal sequences or reorder text, are shown as
    their escapes, such as ``\n`` and ``\x1b``. A byte of a file name that is not UTF-8, which Python holds as a lone
    surrogate, is shown as an escape such as ``\xe9``. Other text is returned unchanged.
    """
    text = str(value)
    return text if text.isascii() and text.isprintable() else "".join(map(_visible, text))


def shortened(value: object, length: int) -> str:
    """Return ``plain(value)`` cut to `length` characters, with an ellipsis if it was longer."""
    text = plain(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def reason_of(error: BaseException) -> str:
    """Return the type and the first line of the message of an exception, in at most 300 characters."""
    first, *_ = str(error).strip().splitlines() or [""]
    return shortened(f"{type(error).__name__}: {first}" if first else type(error).__name__, 300)


def html_text(value: object) -> str:
    """Return ``plain(value)`` for the text or a quoted attribute of an HTML element."""
    return html.escape(plain(value), quote=True)


def markdown_text(value: object) -> str:
    """Return ``plain(value)`` within a line or a cell of a table of a Markdown document."""
    return _MARKDOWN.sub(r"\\\1", plain(value))


def print_line(console: Console, value: object) -> None:
    """Print ``plain(value)`` as one line, which only the terminal wraps, so that paths in it can be copied.

    Rich's markup and emoji codes are not interpreted. Characters that the output cannot encode are replaced by "?".
    """
    from rich.text import Text

    console.print(Text(encodable(plain(value), console.encoding)), soft_wrap=True)


def encodable(text: str, encoding: str) -> str:
    """Return `text` with "?" for each character that `encoding` lacks."""
    return text.encode(encoding, "replace").decode(encoding)


def replace_unencodable_output() -> None:
    """Make standard output replace characters that it cannot encode by "?", where it would raise UnicodeEncodeError.

    For commands alone, since it changes the stream of the process.
    """
    if getattr(sys.stdout, "errors", None) in ("strict", "surrogateescape") and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _ESCAPED_CATEGORIES or character in _JOINERS:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # "surrogateescape" adds 0xDC00 to the byte
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
