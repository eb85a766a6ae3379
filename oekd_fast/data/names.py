"""Names from files and folders, in a form that can be printed and stored as JSON."""

import unicodedata
from pathlib import Path

# Marks that reverse the direction of text, so that a name is shown as another.
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Control characters, halves of surrogate pairs, and line and paragraph separators.
_ESCAPED_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")


def printable(name: str | Path) -> str:
    r"""Return `name` as one line of valid Unicode.

    Control characters, line separators and marks of text direction are written as escapes such as `\x1b`. A byte of a
    file name that is not UTF-8, which Python holds as a lone surrogate, becomes an escape such as `\xe9`.
    """
    text = str(name)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _ESCAPED_CATEGORIES and character not in _BIDIRECTIONAL:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # "surrogateescape": the byte, above 0xDC00
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
