"""Figures as SVG for an HTML page: text of the page's font, colours that follow its theme, values under the pointer.

matplotlib draws the SVG; `svg` adapts it, so that the code of a figure is the same for pages and for pictures.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from oekd_fast.common.text import html_text, plain
from oekd_fast.figures.plotting import house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

POINTS = 72.0  # in an inch; a point is the unit of the SVG
# A point takes at least and at most so many pixels of the page: smaller texts are not readable, larger ones not needed.
LEAST_SCALE, MOST_SCALE = 0.9, 1.6
# Elements of the class have a text; the style of a page may refer to it.
HOVER_CLASS = "figure-value"
_STYLE = f".{HOVER_CLASS}:hover{{fill:currentColor;fill-opacity:.12;stroke:currentColor;stroke-opacity:.6}}"
# The background of a page is its property --back, or that of its theme.
_COLORS = {"#000000": "currentColor", "#ffffff": "var(--back,Canvas)"}
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "oekd_fast", "svg.image_inline": True}
_ROUNDED = ("d", "x", "y", "width", "height")  # attributes in points

Box = tuple[float, float, float, float]


def svg(figure: Figure | Callable[[], Figure], description: str) -> str:
    """Return HTML that shows a figure: an ``<svg>`` as wide as its surroundings allow.

    A figure of `plotting.new_panels` becomes a grid with an ``<svg>`` for each panel, whose columns fit the width of
    the page.

    Black becomes ``currentColor``, white the background of the page, and backgrounds are transparent. Texts stay texts,
    in the font of the page. The areas of `oekd_fast.figures.hover` show their texts under the pointer. There are no
    scripts and no references out of the page. The same figure and description give the same bytes; identifiers differ
    between figures, so that a page can hold any number of them.

    Args:
        figure: the figure, or a function that draws it, which is called with the style of the package.
        description: what the figure shows, for readers who do not see it.
    """
    buffer = io.BytesIO()
    with house_style(_SETTINGS):
        drawn = figure() if callable(figure) else figure
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawn.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        _leave_namespaces(element)
    root.remove(root.find("defs"))  # a style for all elements of the page
    definitions = root.findall("defs")
    groups = [group for group in root.iter("g") if re.fullmatch(r"subfigure_\d+", group.get("id", ""))]
    digest = hashlib.sha256(buffer.getvalue() + description.encode(errors="replace"))
    _adapt(root, f"f{digest.hexdigest()[:10]}-")
    if not groups:
        return _html([*root, *_hover_elements(drawn, drawn)], _box(drawn, drawn), description)
    boxes = [_box(panel, drawn) for panel in drawn.subfigs]
    parts = []
    for panel, group, box in zip(drawn.subfigs, groups, boxes, strict=True):
        content = [group, *([] if parts else definitions), *_hover_elements(panel, drawn)]
        parts.append(_html(content, box, f"{description}: {_name(panel)}"))
    return (
        f'<div role="group" aria-label="{html_text(description)}" style="{_grid(boxes)}">\n'
        + "\n".join(parts)
        + "\n</div>"
    )


def _name(panel: FigureBase) -> str:
    """Return what tells a panel from the others: its title, and the title and the vertical axis of its first axes."""
    axes = panel.axes[0]
    return ", ".join(filter(None, (panel.get_suptitle(), axes.get_title(), axes.get_ylabel())))


def _grid(boxes: Sequence[Box]) -> str:
    """Return the style of a grid that has the columns of the figure, or as many as fit the page."""
    columns = len({round(left) for left, *_ in boxes})
    least = LEAST_SCALE * max(right - left for left, _, right, _ in boxes)
    share = f"calc((100% - {columns - 1}rem)/{columns})"
    return (
        f"display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,max({least:.0f}px,{share})),1fr));"
        "gap:1rem;overflow-x:auto"
    )


def _html(content: Sequence[Element], box: Box, description: str) -> str:
    """Return an ``<svg>`` that shows the part `box` (left, top, right, bottom) of `content`."""
    left, top, right, bottom = box
    width = right - left
    root = Element(
        "svg",
        {
            "role": "img",
            "aria-label": plain(description),
            "viewBox": " ".join(_rounded(f"{value:.6f}") for value in (left, top, width, bottom - top)),
            "fill": "currentColor",
            "stroke-linejoin": "round",
            "style": f"display:block;width:100%;min-width:{LEAST_SCALE * width:.0f}px;"
            f"max-width:{MOST_SCALE * width:.0f}px;height:auto;overflow:visible",
        },
    )
    ElementTree.SubElement(root, "style").text = _STYLE
    root.extend(content)
    return ElementTree.tostring(root, encoding="unicode")


def _leave_namespaces(element: Element) -> None:
    """Remove namespaces from names, as HTML has none; ``xlink:href`` becomes ``href``."""
    element.tag = element.tag.rpartition("}")[2]
    element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}


def _adapt(root: Element, prefix: str) -> None:
    """Make the colours, fonts, numbers and identifiers of matplotlib's elements those of a part of a page."""
    parents = [(parent, child) for parent in root.iter() for child in parent]
    for parent, child in parents:
        if child.tag == "path" and child.get("style") == "fill: none":  # a transparent background
            parent.remove(child)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", ElementTree.tostring(root, encoding="unicode")))
    for element in root.iter():
        if element.tag != "text":
            element.text = None
        element.tail = None
        attributes = element.attrib
        if (name := attributes.pop("id", None)) in used:
            attributes["id"] = prefix + name
        if attributes.get("href", "").startswith("#"):
            attributes["href"] = f"#{prefix}{attributes['href'][1:]}"
        if attributes.get("transform", "").startswith("rotate(-0 "):
            del attributes["transform"]
        for name, value in attributes.items():
            if name in _ROUNDED:
                value = _rounded(value)
            elif name == "style":
                value = _adapted_style(value)
            attributes[name] = value.replace("url(#", f"url(#{prefix}")
    _unwrap(root)


def _unwrap(element: Element) -> None:
    """Replace groups without attributes by their content."""
    for child in element:
        _unwrap(child)
    element[:] = [inner for child in element for inner in (child if child.tag == "g" and not child.attrib else [child])]


def _adapted_style(style: str) -> str:
    declarations = []
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":  # of matplotlib before 3.11: style, weight, size and family
            *kinds, size = value.partition("px")[0].split()
            declarations.append(f"font-size:{size}px")
            declarations += [f"font-{'weight' if kind.isdigit() else 'style'}:{kind}" for kind in kinds]
        elif name and name != "font-family":
            declarations.append(f"{name}:{_COLORS.get(value, value)}")
    return ";".join(declarations)


def _rounded(value: str) -> str:
    """Return a path or a number with two decimals, a hundredth of a point."""
    shorter = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
    return " ".join(shorter.split())


def _hover_elements(panel: FigureBase, figure: Figure) -> Iterator[Element]:
    """Yield a transparent element with a title for each area of `panel` that is within its axes."""
    from oekd_fast.figures.targets import Targets

    for targets in panel.findobj(Targets):
        corners = targets.get_transform().transform(targets.corners.reshape(-1, 2)).reshape(-1, 2, 2)
        inside = _box(targets.axes, figure)
        for box, text in zip(_boxes(corners, figure), targets.texts, strict=True):
            shape = _rectangle(box, inside) if targets.radius is None else _circle(box, inside, targets.radius)
            if shape is not None:
                tag, numbers = shape
                values = {name: _rounded(f"{value:.6f}") for name, value in numbers.items()}
                element = Element(tag, {"class": HOVER_CLASS, "fill": "transparent"} | values)
                ElementTree.SubElement(element, "title").text = "\n".join(map(plain, text.split("\n")))
                yield element


def _circle(box: Box, inside: Box, radius: float) -> tuple[str, dict[str, float]] | None:
    x, y, *_ = box
    left, top, right, bottom = inside
    if not (left - 1 <= x <= right + 1 and top - 1 <= y <= bottom + 1):
        return None
    return "circle", {"cx": x, "cy": y, "r": radius}


def _rectangle(box: Box, inside: Box) -> tuple[str, dict[str, float]] | None:
    left, top = map(max, box[:2], inside[:2])
    right, bottom = map(min, box[2:], inside[2:])
    if right <= left or bottom <= top:
        return None
    return "rect", {"x": left, "y": top, "width": right - left, "height": bottom - top}


def _box(part: FigureBase | Axes, figure: Figure) -> Box:
    """Return the place of `part` in `figure`: left, top, right and bottom in points."""
    return _boxes(part.bbox.get_points()[None], figure)[0]


def _boxes(corners: np.ndarray, figure: Figure) -> list[Box]:
    """Return pairs of corners in pixels of `figure`, float [N, 2, 2], as left, top, right and bottom in points."""
    width, height = (POINTS * inches for inches in figure.get_size_inches())
    shares = corners / (figure.bbox.width, figure.bbox.height)
    points = np.stack((shares[..., 0] * width, (1.0 - shares[..., 1]) * height), axis=-1)
    return [(*low, *high) for low, high in zip(points.min(axis=1).tolist(), points.max(axis=1).tolist(), strict=True)]
