"""Links between the pages lead to pages and headings that exist, and files that pages name exist."""

import re

import pytest

from .pages import PAGES, ROOT, name, prose

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:oekd_fast|kernels|csrc|bench|tests|docs|examples)/[\w./-]*)`")
GENERATED = ("docs/_build",)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub and MyST give to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_within_the_project_have_targets(page):
    broken = []
    for link in LINK.findall(prose(page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else (page.parent / path).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_named_in_prose_exist(page):
    named = PATH.findall(prose(page.read_text()))
    assert [path for path in named if not (ROOT / path).exists() and not path.startswith(GENERATED)] == []


def test_every_page_is_in_the_table_of_contents():
    toctree = (ROOT / "docs/index.md").read_text().split("{toctree}")[1]
    pages = {page.stem for page in ROOT.glob("docs/*.md")} - {"index"}
    assert pages == set(re.findall(r"^(\w+)$", toctree, re.MULTILINE))


def test_readme_fits_160_lines_and_nothing_is_announced_as_unmeasured():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
    for page in PAGES:
        assert "not yet measured" not in page.read_text()


def test_pictures_are_small():
    sizes = [picture.stat().st_size for picture in ROOT.glob("docs/images/*.png")]
    assert len(sizes) == 3 and max(sizes) < 60_000
