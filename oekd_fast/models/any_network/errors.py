"""The error for networks whose graph cannot be followed or cut."""

from __future__ import annotations

from oekd_fast.models.any_network.scaling_errors import FACTORY_FORM


class CutError(ValueError):
    """Raised when a network cannot be cut into a base, blocks and a classifier; names the node or module and why."""


def with_factory_form(problem: str) -> CutError:
    """Return an error of one line that names `problem` and the forms that need no graph."""
    return CutError(f"module: {problem}; {FACTORY_FORM}, or pass blocks=(), for which no graph is needed")
