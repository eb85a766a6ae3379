"""The compiled extension, loaded once: CPU kernels and the student executor (csrc/)."""

from __future__ import annotations

import warnings
from importlib import import_module
from types import ModuleType

import torch


def _load() -> tuple[ModuleType | None, str | None]:
    """Return the extension, which registers its kernels when it loads, or why it is unavailable."""
    try:
        return import_module("oekd_fast._native"), None
    except ModuleNotFoundError as error:
        return None, f"{error}; install with a C++ compiler and without OEKD_FAST_NATIVE=0"
    except ImportError as error:
        # Installed, but built for another torch: a slow fallback must not pass unnoticed.
        warnings.warn(f"the native extension does not load and will not be used: {error}; build it again", stacklevel=2)
        return None, str(error)


_extension, _reason = _load()


def why_missing() -> str | None:
    """Why the extension is unavailable, in one line; None if it is loaded."""
    return _reason


def has_op(name: str) -> bool:
    """Whether the extension implements ``torch.ops.oekd_fast.<name>`` on the CPU."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"oekd_fast::{name}", "CPU")


def isa_names() -> tuple[str, ...]:
    """Instruction sets that were built and that this processor supports, widest first; empty without the extension."""
    return () if _extension is None else tuple(_extension.isa_names())


def isa() -> str | None:
    """The instruction set that the CPU kernels use; None without the extension."""
    return next(iter(isa_names()), None)


def executor_class() -> type:
    """The C++ class that runs students side by side.

    Raises:
        RuntimeError: the extension is unavailable; the message says why.
    """
    if _extension is None:
        raise RuntimeError(_reason)
    return _extension.StudentExecutor
