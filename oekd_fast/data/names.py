"""Names from files and folders, in a form that can be printed and stored as JSON: the one that all outputs show."""

from oekd_fast.common.text import plain as printable

__all__ = ["printable"]
