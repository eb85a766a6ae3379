"""Names of objects in Python code, such as ``nets.py:make`` and ``package.module:make``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from oekd_fast.common.text import reason_of


def split_python_name(text: str) -> tuple[str, str] | None:
    """Split ``package.module:name`` or ``file.py:name``; None if `text` has another form."""
    where, _, name = text.rpartition(":")
    if not name.isidentifier() or not (where.endswith(".py") or all(map(str.isidentifier, where.split(".")))):
        return None
    return where, name


def import_python(where: str, purpose: str) -> ModuleType:
    """Import a module by its name, or a file under a name of its own. The code runs with the user's rights.

    Args:
        where: ``package.module`` or ``file.py``.
        purpose: first word of the name that a file is imported under.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the code raises an exception, or there is no such module.
    """
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(where).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing")
        spec = importlib.util.spec_from_file_location(f"{purpose}_from_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickle look modules up there
        spec.loader.exec_module(module)
        return module
    except FileNotFoundError:
        raise
    except Exception as error:  # the user's code
        raise ValueError(f"{where} cannot be imported ({reason_of(error)})") from error
