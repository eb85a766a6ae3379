"""Packages that only a part of this package needs, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(name: str, purpose: str, extra: str) -> ModuleType:
    """Import the module `name` of an optional package, and return it.

    Args:
        purpose: start of the error, such as "ONNX files need".
        extra: the extra of this package that installs it.

    Raises:
        ImportError: the module cannot be imported; the message is one line with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package
        reason = "" if absent else f", which cannot be imported ({error})"
        raise ImportError(f"{purpose} the package {package}{reason}: pip install 'oekd_fast[{extra}]'") from error
