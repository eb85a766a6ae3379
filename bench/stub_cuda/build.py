"""Compile the libraries of the stub: ``python -m bench.stub_cuda.build FOLDER``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from torch.utils import cpp_extension

from .install import DEVICE, DRIVER

_SOURCES = Path(__file__).parent


def build(folder: Path) -> None:
    """Compile ``driver.c`` and ``device.cpp`` in `folder`, an existing directory."""
    flags = ["-O2", "-shared", "-fPIC"]
    compiler = cpp_extension.get_cxx_compiler()
    driver = ["-x", "c", _SOURCES / "driver.c", f"-Wl,-soname,{DRIVER}", "-o", folder / DRIVER]
    subprocess.run([compiler, *flags, *driver], check=True)
    include = [part for path in cpp_extension.include_paths() for part in ("-isystem", path)]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    device = ["-std=c++20", _SOURCES / "device.cpp", *include, *libraries, "-lc10", "-ltorch_cpu"]
    subprocess.run([compiler, *flags, *device, "-o", folder / DEVICE], check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
