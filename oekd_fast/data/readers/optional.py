"""Packages that only some sources need."""

from importlib import import_module
from types import ModuleType

from oekd_fast.data.dataset import DataError


def require(module: str) -> ModuleType:
    """Import `module`, or say in one line how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(f"this data needs the package {module!r}: pip install 'oekd_fast[train]'") from error
