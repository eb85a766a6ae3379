"""Load the libraries of the stub into this process."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

DRIVER, DEVICE = "libcuda.so.1", "libstub_device.so"
CAPABILITY = (9, 0)
MULTIPROCESSORS = 132  # of an H100


def install(folder: Path) -> None:
    """Make ``torch.device("cuda", 0)`` usable in this process, for good.

    Args:
        folder: where :mod:`bench.stub_cuda.build` has compiled the libraries.

    Raises:
        RuntimeError: PyTorch is imported already, or was built with CUDA. It asks once, while it is imported, which
            accelerator there is.
    """
    if "torch" in sys.modules:
        raise RuntimeError("stub_cuda: expected a process that has not imported torch")
    libraries = Path(find_spec("torch").origin).parent / "lib"
    for name in ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(libraries / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(folder / DEVICE))
    ctypes.CDLL(str(folder / DRIVER), mode=ctypes.RTLD_GLOBAL)

    import torch

    if torch.backends.cuda.is_built():
        raise RuntimeError("stub_cuda: expected a PyTorch that was built without CUDA, got one with CUDA")
    _replace_functions(torch.cuda)
    _use_triton_with(folder)


def launches() -> int:
    """Return the number of kernels that this process has launched."""
    count = ctypes.CDLL(DRIVER).stub_cuda_launches
    count.restype = ctypes.c_int64
    return count()


def _replace_functions(cuda) -> None:
    stream = SimpleNamespace(cuda_stream=0, stream_id=0, synchronize=lambda: None)
    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS)
    functions = {
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "current_stream": lambda device=None: stream,
        "device": lambda device: nullcontext(),
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_properties": lambda device=None: properties,
        "is_current_stream_capturing": lambda: False,
        "set_device": lambda device: None,
    }
    for name, function in functions.items():
        setattr(cuda, name, function)


def _use_triton_with(folder: Path) -> None:
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    stub = CudaDriver()
    stub.get_current_stream = lambda device: 0
    driver.set_active(stub)
