"""The page in headless Chromium: no errors, no overflow, every chapter with its content, light and dark, and print."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oekd_fast.reporting import evaluation as evaluation_module
from oekd_fast.reporting import pictures, section
from oekd_fast.runs import device_data

from ..support.browser import Browser, chromium
from ..support.hostile_names import HOSTILE_NAMES
from ..support.older_runs import RUNS
from ..support.reports import change, page_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="Chromium is not installed (Debian's package chromium)"),
]
# The chapters and what each of them holds.
CHAPTERS = {
    "headline": (".tiles", "p.lead", "svg", "table"),
    "students": ("table",),
    "use": ("a", "pre"),
    "training": ("svg",),
    "classes": ("svg", "svg image", "table"),
    "calibration": ("svg", "table"),
    "agreement": ("svg",),
    "grad-cam": ("svg image",),
    "settings": ("table",),
}
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
# What is wider than the window, other than in boxes that scroll.
WIDER = """[...document.querySelectorAll('body *')]
  .filter(e => !e.closest('.wide, pre') && e.getClientRects().length)
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 40))"""
# A folded element has a height, but is not visible.
ALL_SHOWN = "[...document.querySelectorAll('.content, td, pre')].every(e => e.checkVisibility() && e.offsetHeight > 15)"
OPEN_ALL = "document.querySelectorAll('details').forEach(e => { e.open = true; })"
# Contrast ratio of WCAG 2 between the colours of the texts and their backgrounds, the lowest on the page.
CONTRAST = """(() => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (colour !== 'rgba(0, 0, 0, 0)') return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const texts = [...document.querySelectorAll('h1, h2, h3, p, a, th, td, dt, dd, pre, summary')];
  return Math.min(...texts.map(e => {
    const [high, low] = [getComputedStyle(e).color, behind(e)].map(light).sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  }));
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(chromium(), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(drawn_run) -> Path:
    """The page of a run of two students with their baselines, with all pictures."""
    return drawn_run / "report" / "index.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_fits_and_every_chapter_has_its_content(browser, page, width, dark):
    browser.open(page, width=width, dark=dark)
    assert browser.run("[...document.querySelectorAll('details.chapter[open] > .content')].map(e => e.id)") == [
        "headline", "students"]  # fmt: skip
    browser.run(OPEN_ALL)
    assert browser.run(FITS) and browser.run(WIDER) == [] and browser.run(ALL_SHOWN)
    assert browser.run("[...document.querySelectorAll('.content')].map(e => e.id)") == [*CHAPTERS]
    for chapter, parts in CHAPTERS.items():
        for part in parts:
            assert browser.run(f"document.querySelectorAll('#{chapter} {part}').length > 0"), (chapter, part)
    sizes = browser.run("[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().width)")
    assert min(sizes) > 150
    assert browser.run(CONTRAST) >= 4.5
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (not dark)
    assert browser.problems == []


def test_links_of_the_contents_open_their_chapters(browser, page):
    browser.open(page, width=1400)
    assert browser.run("[...document.querySelectorAll('nav a')].map(e => e.getAttribute('href'))") == [
        f"#{key}" for key in CHAPTERS
    ]
    for key in CHAPTERS:
        browser.run(f"""new Promise(done => {{
            addEventListener('hashchange', () => requestAnimationFrame(done), {{once: true}});
            document.querySelector('nav a[href="#{key}"]').click();
        }})""")
        assert browser.run(f"document.getElementById('{key}').closest('details').open"), key
        assert 0 <= browser.run(f"document.getElementById('{key}').getBoundingClientRect().top") < 900, key


def test_print_shows_folded_chapters_in_light_colours(browser, page):
    browser.open(page, width=800, dark=True, media="print")
    assert browser.run(
        "document.querySelectorAll('details[open]').length < document.querySelectorAll('details').length"
    )
    assert browser.run(ALL_SHOWN)
    assert browser.run("document.querySelector('nav').offsetHeight") == 0
    assert browser.run("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"


def test_a_click_selects_the_lines_to_copy(browser, page):
    browser.open(page, width=1400)
    browser.run(OPEN_ALL)
    browser.run("getSelection().selectAllChildren(document.querySelector('#use pre code'))")
    selected = browser.run("getSelection().toString()")
    assert selected.startswith("from oekd_fast import load_student\n") and "student.preprocess(images)" in selected
    assert browser.run("getComputedStyle(document.querySelector('pre code')).userSelect") == "all"


@pytest.fixture
def without_figures(monkeypatch):
    """Have other pages show the same picture in two panels, since drawing takes most of the time."""
    figure = '<svg role="img" viewBox="0 0 370 280" style="display:block;width:100%;min-width:333px"></svg>'
    grid = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,426px),1fr))"
    content = f'<div style="{grid}">{figure * 2}</div>'
    monkeypatch.setattr(pictures, "drawn", lambda draw, description: (content, b"a picture"))


def check(browser: Browser, path: Path) -> None:
    for width in (400, 1400):
        browser.open(path, width=width)
        browser.run(OPEN_ALL)
        assert browser.run(FITS) and browser.run(WIDER) == []
        assert browser.run(ALL_SHOWN)
        assert browser.problems == []


def test_several_families_old_runs_and_hostile_names(browser, trained, tmp_path, without_figures, monkeypatch):
    """The old run lacks fields; the other one has long names, and no students trained alone."""
    names = tuple("".join(HOSTILE_NAMES[k:]) * 3 for k in range(3))
    dataset_of = device_data.dataset_of
    monkeypatch.setattr(device_data, "dataset_of", lambda config: replace(dataset_of(config), classes=names))
    monkeypatch.setattr(evaluation_module, "check_same_images", lambda *arguments: None)
    hostile = shutil.copytree(trained, tmp_path / "hostile", ignore=shutil.ignore_patterns("checkpoints"))
    students = json.loads((hostile / "summary.json").read_text())["students"]
    students = [student | {"baseline_accuracy": None, "relative_gain": None} for student in students]
    versions = dict.fromkeys(HOSTILE_NAMES, "x")
    change(hostile / "summary.json", dataset="".join(HOSTILE_NAMES), device="x" * 300, versions=versions,
           students=students)  # fmt: skip
    page_of(hostile, RUNS / "finished", output=tmp_path / "page")
    check(browser, tmp_path / "page" / "index.html")
    assert browser.run("document.querySelectorAll('nav > ul > li').length") == 2
    assert browser.run("document.querySelectorAll('section').length") == 2


def test_many_classes_and_students(browser, trained, tmp_path, without_figures, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    evaluate = evaluation_module.evaluate

    def with_100_classes(group, source):
        found = evaluate(group, source)
        labels = torch.arange(1000) % 100
        test = replace(found.dataset.test, images=found.dataset.test.images[labels % 30], labels=labels)
        classes = tuple(f"a class with the number {k}" for k in range(100))
        dataset = replace(found.dataset, classes=classes, test=test)
        predictions = replace(
            found.predictions[0],
            labels=labels,
            predicted=torch.where(
                torch.rand(5, 1000, generator=generator) < 0.7,
                labels,
                torch.randint(100, (5, 1000), generator=generator),
            ),
            confidence=torch.rand(5, 1000, generator=generator),
            loss=torch.rand(5, 1000, generator=generator),
        )
        return replace(found, dataset=dataset, predictions=(predictions,))

    monkeypatch.setattr(section, "evaluate", with_100_classes)
    page_of(trained, output=tmp_path, images=0)
    check(browser, tmp_path / "index.html")
    assert browser.run("document.querySelectorAll('#classes table')[0].rows.length") == 101
