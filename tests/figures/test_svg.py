"""Figures as parts of a page: texts, colours, identifiers, values under the pointer, and sizes."""

import re
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from oekd_fast.common.text import plain
from oekd_fast.figures.hover import hover_bands, hover_boxes, hover_points
from oekd_fast.figures.plotting import new_figure, new_panels
from oekd_fast.figures.svg import HOVER_CLASS, svg

from ..support.hostile_names import HOSTILE_NAMES


def titles(root: ElementTree.Element) -> dict[str, ElementTree.Element]:
    """Return the elements with a text under the pointer, by their text."""
    return {element.findtext("title"): element for element in root.iter() if element.get("class") == HOVER_CLASS}


def line(title: str = "a title", color: str = "#0072b2"):
    figure = new_figure(5, 3)
    axes = figure.subplots()
    axes.plot([0, 1, 2], [10, 20, 15], "o-", color=color)
    axes.axhline(12, color="black", linestyle=":")
    axes.axhline(13, color="white")
    axes.set(xlim=(0, 4), ylim=(0, 40), title=title, xlabel="epoch", ylabel="$5, %")
    axes.grid()
    hover_points(axes, [0, 1, 2, 9, float("nan")], [10, 20, 15, 10, 10], ["a", "b <b>\nand a line", "c", "out", "nan"])
    return figure


@pytest.fixture(scope="module")
def drawn() -> str:
    return svg(line, 'a "description"')


def test_texts_stay_texts_in_the_font_of_the_page(drawn):
    root = ElementTree.fromstring(drawn)
    texts = [element.text for element in root.iter("text")]
    assert {"a title", "epoch", "$5, %", "0", "40"} <= set(texts)
    assert "font-family" not in drawn and "DejaVu" not in drawn
    assert all("font-size:" in element.get("style") for element in root.iter("text"))


def test_black_is_the_colour_of_the_page_and_backgrounds_are_transparent(drawn):
    root = ElementTree.fromstring(drawn)
    assert root.get("fill") == "currentColor"
    assert "#000000" not in drawn and "#ffffff" not in drawn
    assert "stroke:currentColor" in drawn and "stroke:var(--back,Canvas)" in drawn and "stroke:#0072b2" in drawn
    for text in root.iter("text"):
        assert "fill" not in text.get("style")
    fills = {part for e in root.iter() for part in e.get("style", "").split(";") if part.startswith("fill:")}
    assert fills == {"fill:none", "fill:#0072b2"}


def test_an_element_is_an_image_with_a_description_and_the_width_of_the_page(drawn):
    root = ElementTree.fromstring(drawn)
    assert root.tag == "svg" and root.get("role") == "img" and root.get("aria-label") == 'a "description"'
    assert root.get("viewBox") == "0 0 360 216" and root.get("width") is None
    assert "width:100%;min-width:324px;max-width:576px;height:auto" in root.get("style")


def test_nothing_leads_out_of_the_page(drawn):
    assert not re.search(r"http|<script|@import|xmlns|<a |<!--", drawn)
    assert set(re.findall(r'(?:href="|url\()(.)', drawn)) == {"#"}


def test_points_have_their_text_at_their_place(drawn):
    root = ElementTree.fromstring(drawn)
    found = titles(root)
    assert set(found) == {"a", "b <b>\nand a line", "c"}  # not those outside the axes, or without a place
    markers = [e for e in root.iter("use") if "fill:#0072b2" in e.get("style")]
    assert len(markers) == 3
    for marker, circle in zip(markers, found.values(), strict=True):
        for name in "xy":
            assert float(circle.get(f"c{name}")) == pytest.approx(float(marker.get(name)), abs=0.02)


def test_boxes_and_bands_have_the_corners_of_their_data_within_the_axes():
    def draw():
        figure = Figure(figsize=(4, 3))
        axes = figure.add_axes((0.25, 0.5, 0.5, 0.25))
        axes.set(xlim=(0, 10), ylim=(0, 100))
        hover_boxes(axes, [(1, 20, 3, 40), (8, 90, 12, 120), (20, 0, 30, 1)], ["in", "cut", "out"])
        hover_bands(axes, [-5, 5, 6], ["first", "second"])
        return figure

    found = titles(ElementTree.fromstring(svg(draw, "boxes")))
    corners = {text: [float(e.get(name)) for name in ("x", "y", "width", "height")] for text, e in found.items()}
    # The axes are 144 x 54 points, from (72, 54); 10 and 100 units.
    assert corners == {
        "in": pytest.approx([86.4, 86.4, 28.8, 10.8]),
        "cut": pytest.approx([187.2, 54, 28.8, 5.4]),
        "first": pytest.approx([72, 54, 72, 54]),
        "second": pytest.approx([144, 54, 14.4, 54]),
    }


def test_a_wrong_number_of_texts_is_rejected():
    axes = new_figure(1, 1).subplots()
    with pytest.raises(ValueError, match="texts: expected 2 texts, got 1"):
        hover_points(axes, [1, 2], [3, 4], ["one"])


def test_the_same_figure_has_the_same_bytes_whatever_the_settings_of_the_user(drawn):
    settings = {"svg.fonttype": "path", "svg.hashsalt": None, "font.size": 3, "text.usetex": True, "savefig.dpi": 20}
    with matplotlib.rc_context(settings):
        assert svg(line, 'a "description"') == drawn
    assert svg(line(), "a figure drawn before").count("<text") == drawn.count("<text")


def test_two_figures_of_a_page_share_no_identifier(drawn):
    pages = [drawn, svg(line, "another description"), svg(lambda: line(color="#d55e00"), 'a "description"')]
    identifiers = [re.findall(r' id="([^"]+)"', page) for page in pages]
    for page, own in zip(pages, identifiers, strict=True):
        assert len(set(own)) == len(own) > 2
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) == set(own)
    assert len(set().union(*identifiers)) == sum(map(len, identifiers))


@pytest.fixture(scope="module")
def panels() -> ElementTree.Element:
    def draw():
        figure, parts = new_panels(3, columns=2, size=(4, 3))
        for number, panel in enumerate(parts):
            axes = panel.subplots()
            axes.plot([1, 2], [1, number], "o")
            axes.set(title=f"panel {number}", ylabel="accuracy, %")
            hover_points(axes, [1, 2], [1, number], [f"first of {number}", f"second of {number}"])
        return figure

    return ElementTree.fromstring(svg(draw, "three <panels>"))


def test_each_panel_is_an_image_of_a_grid(panels):
    assert panels.tag == "div" and panels.get("role") == "group" and panels.get("aria-label") == "three <panels>"
    assert "display:grid" in panels.get("style")
    # Two columns, as in the figure, if each is at least 0.9 times as many pixels wide as a panel has points.
    assert "repeat(auto-fill,minmax(min(100%,max(257px,calc((100% - 1rem)/2))),1fr))" in panels.get("style")
    assert [child.get("aria-label") for child in panels] == [
        f"three <panels>: panel {number}, accuracy, %" for number in range(3)
    ]
    boxes = [[float(number) for number in child.get("viewBox").split()] for child in panels]
    assert boxes[0][0] == boxes[2][0] < boxes[1][0] and boxes[0][1] == boxes[1][1] < boxes[2][1]
    assert all(
        width == pytest.approx(288, abs=5) and height == pytest.approx(216, abs=5) for *_, width, height in boxes
    )


def test_a_panel_holds_its_own_elements_only(panels):
    for number, child in enumerate(panels):
        assert list(titles(child)) == [f"first of {number}", f"second of {number}"]
        left, top, width, height = (float(value) for value in child.get("viewBox").split())
        for text in child.iter("text"):
            assert left <= float(text.get("x")) <= left + width and top <= float(text.get("y")) <= top + height
    identifiers = [element.get("id") for element in panels.iter() if element.get("id")]
    assert len(set(identifiers)) == len(identifiers)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_any_text_is_shown_and_has_no_effect(name):
    def draw():
        figure = new_figure(2, 2)
        axes = figure.subplots()
        axes.set(xticks=[], yticks=[])
        hover_points(axes, [0.5], [0.5], [name])
        return figure

    root = ElementTree.fromstring(svg(draw, name))
    assert list(titles(root)) == ["\n".join(map(plain, name.split("\n")))]
    assert root.get("aria-label") == plain(name) and root.find(".//script") is None
