"""Loads the compiled extension (csrc/) once: the CPU kernels and the student executor."""

from __future__ import annotations

import warnings
from importlib import import_module
from types import ModuleType

import torch


def _load() -> tuple[ModuleType | None, str | None]:
    """Return the extension, or None and the reason. Loading it registers its kernels with PyTorch."""
    try:
        return import_module("oekd_fast._native"), None
    except ModuleNotFoundError as error:
        return None, f"{error}; install with a C++ compiler and without OEKD_FAST_NATIVE=0"
    except ImportError as error:
        # The extension is installed but was built for another torch. Without a warning the slow fallback would go
        # unnoticed.
        warnings.warn(f"the native extension does not load and will not be used: {error}; build it again", stacklevel=2)
        return None, str(error)


_extension, _reason = _load()


def why_missing() -> str | None:
    """Return the reason why the extension is unavailable, or None if it is loaded."""
    return _reason


def has_op(name: str) -> bool:
    """Return whether the extension implements ``torch.ops.oekd_fast.<name>`` on the CPU."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"oekd_fast::{name}", "CPU")


def isa_names() -> tuple[str, ...]:
    """Return the built instruction sets that this processor supports, widest first; empty without the extension."""
    return () if _extension is None else tuple(_extension.isa_names())


def isa() -> str | None:
    """Return the instruction set that the CPU kernels use, or None without the extension."""
    return next(iter(isa_names()), None)


def cpu_generator_state() -> bytes:
    """Return the state of torch's default CPU generator. Modes and transforms of torch do not see the call.

    Raises:
        RuntimeError: the extension is unavailable; the message is the reason.
    """
    return _loaded().cpu_generator_state()


def executor_class() -> type:
    """Return the C++ class that runs students side by side.

    Raises:
        RuntimeError: the extension is unavailable; the message is the reason.
    """
    return _loaded().StudentExecutor


def _loaded() -> ModuleType:
    if _extension is None:
        raise RuntimeError(_reason)
    return _extension
