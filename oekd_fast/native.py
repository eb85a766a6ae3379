"""Loads the compiled code (csrc/) once: the CPU kernels, and the executor with the autograd kernel of the loss.

The kernels (_kernels.so) use torch's stable ABI, so one build serves every torch from 2.10 on and every Python. The
executor serves the torch and Python that it was built with only. Without it, students run sequentially, and the
backward pass of the loss is a `torch.autograd.Function`; the results are the same.
"""

from __future__ import annotations

import ctypes
import warnings
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import torch

from oekd_fast.common.executor_file import executor_file

_FOLDER = Path(__file__).parent
_HOW_TO_BUILD = "install with a C++ compiler and without OEKD_FAST_NATIVE=0"


def _load_kernels() -> tuple[ctypes.CDLL | None, str | None]:
    """Return the library of the kernels, or None and the reason. Loading it registers the kernels with PyTorch."""
    path = _FOLDER / "_kernels.so"
    if not path.is_file():
        return None, f"{path.name} is not installed; {_HOW_TO_BUILD}"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        # Without a warning the slow fallback would go unnoticed.
        warnings.warn(f"the CPU kernels do not load and will not be used: {error}; build them again", stacklevel=2)
        return None, str(error)
    library.oekd_fast_isa_names.restype = ctypes.c_char_p
    return library, None


def _load_executor() -> tuple[ModuleType | None, str | None]:
    """Return the module of the executor, or None and the reason.

    A file that was built with another torch or Python is never opened: it could crash the process.
    """
    path = _FOLDER / executor_file()
    try:
        if path.is_file():
            loader = ExtensionFileLoader("oekd_fast._executor", str(path))
            module = module_from_spec(spec_from_loader(loader.name, loader))
            loader.exec_module(module)
            return module, None
        others = sorted(other.name for other in _FOLDER.glob("_executor.*.so"))
        if not others:
            return None, f"{path.name} is not installed; {_HOW_TO_BUILD}"
        reason = f"executor: expected {path.name}, which fits this torch and Python, got {', '.join(others)}"
    except ImportError as error:
        reason = f"executor: {error}"
    warnings.warn(
        f"{reason}; students run sequentially, with the same results; install oekd_fast from its sources to build it",
        stacklevel=2,
    )
    return None, reason


_kernels, _reason = _load_kernels()
_executor, _executor_reason = _load_executor() if _kernels is not None else (None, _reason)


def why_missing() -> str | None:
    """Return the reason why the CPU kernels are unavailable, or None if they are loaded."""
    return _reason


def why_no_executor() -> str | None:
    """Return the reason why the executor and the autograd kernel are unavailable, or None if they are loaded."""
    return _executor_reason


def has_op(name: str) -> bool:
    """Return whether the kernels implement ``torch.ops.oekd_fast.<name>`` on the CPU."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"oekd_fast::{name}", "CPU")


def isa_names() -> tuple[str, ...]:
    """Return the built instruction sets that this processor supports, widest first; empty without the kernels."""
    return () if _kernels is None else tuple(_kernels.oekd_fast_isa_names().decode().split())


def isa() -> str | None:
    """Return the instruction set that the CPU kernels use, or None without them."""
    return next(iter(isa_names()), None)


def cpu_generator_state() -> bytes:
    """Return the state of torch's default CPU generator. Modes and transforms of torch do not see the call.

    Raises:
        RuntimeError: the executor is unavailable; the message is the reason.
    """
    return _loaded().cpu_generator_state()


def executor_class() -> type:
    """Return the C++ class that runs students side by side.

    Raises:
        RuntimeError: the executor is unavailable; the message is the reason.
    """
    return _loaded().StudentExecutor


def launch_module() -> ModuleType | None:
    """Return the module with the classes ``PreparedCalls`` and ``PreparedLaunch``, or None if it is unavailable."""
    return _executor


def _loaded() -> ModuleType:
    if _executor is None:
        raise RuntimeError(_executor_reason)
    return _executor
