"""The HTML document of a report: title, contents and the parts on each group of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oekd_fast.common.text import html_text
from oekd_fast.reporting import page
from oekd_fast.reporting.style import STYLE

# Nothing is loaded, even if a name from a run folder were taken for markup.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Chapter:
    """A part of the page on one group that folds below its heading.

    Args:
        key: name of the target of links; unique in its group.
        title: heading.
        content: HTML.
        is_open: whether the part is open at first.
    """

    key: str
    title: str
    content: str
    is_open: bool = False


@dataclass(frozen=True)
class Part:
    """The part of the page on one group of runs.

    Args:
        title: title of the group.
        lead: HTML above the chapters.
        chapters: chapters in order.
    """

    title: str
    lead: str
    chapters: tuple[Chapter, ...]


def document(title: str, parts: Sequence[Part], overview: str = "") -> str:
    """Return the HTML document.

    Args:
        title: title of the page.
        parts: parts on each group; the title of a single one is left out.
        overview: HTML above several parts.
    """
    single = len(parts) == 1
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{page.heading(1, title)}\n{_contents(parts)}\n<main>\n{overview}\n"
        + "\n".join(_part(part, "" if single else f"{number}-") for number, part in enumerate(parts, start=1))
        + "\n</main>\n</body>\n</html>\n"
    )


def _contents(parts: Sequence[Part]) -> str:
    """Return the links to all chapters, below the title of their group if there are several."""
    if len(parts) == 1:
        lists = _links(parts[0], "")
    else:
        lists = "<ul>" + "".join(
            f"<li>{page.link(f'#{number}-group', part.title)}{_links(part, f'{number}-')}</li>"
            for number, part in enumerate(parts, start=1)
        ) + "</ul>"  # fmt: skip
    return f'<nav aria-label="Contents"><p>Contents</p>{lists}</nav>'


def _links(part: Part, prefix: str) -> str:
    items = "".join(f"<li>{page.link(f'#{prefix}{chapter.key}', chapter.title)}</li>" for chapter in part.chapters)
    return f"<ul>{items}</ul>"


def _part(part: Part, prefix: str) -> str:
    """Return the chapters; those of several groups are below a heading, and theirs are a level lower."""
    level = 3 if prefix else 2
    chapters = "\n".join(
        page.chapter(prefix + each.key, level, each.title, each.content, is_open=each.is_open) for each in part.chapters
    )
    if not prefix:
        return f"{part.lead}\n{chapters}"
    return f'<section id="{prefix}group">\n{page.heading(2, part.title)}\n{part.lead}\n{chapters}\n</section>'
