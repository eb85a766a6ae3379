"""Sphinx configuration of the documentation; ``make docs`` builds it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "_extensions"))

from oekd_fast import __version__  # noqa: E402

project = "oekd_fast"
copyright = "the authors of oekd_fast"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
exclude_patterns = ["_build"]

# -- Markdown
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # headings up to this level can be linked to, as on GitHub
html_math_renderer = "mathml"

# -- docstrings: Google style, in which single backquotes mark code
default_role = "code"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_use_rtype = False

# -- the site, which loads nothing from other hosts
html_theme = "furo"
html_title = f"oekd_fast {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_sphinx = False

# -- strict: `make docs` turns warnings into errors, and a reference without a target is a warning
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(torch|nn|numpy|pathlib|collections|typing)\..*")]


def find_by_last_name(app, env, node, contnode):
    """Resolve references of docstrings that give only the last part of a documented name, as in ``Raises:``."""
    if node.get("refdomain") != "py" or node.get("refspecific"):
        return None
    node["refspecific"] = True
    domain = env.domains["py"]
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], node["reftarget"], node, contnode)


def setup(app):
    app.connect("missing-reference", find_by_last_name)
