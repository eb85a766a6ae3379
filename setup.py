"""Build of the native extension; everything else is in pyproject.toml.

OEKD_FAST_NATIVE=0 asks for an install without it (pure PyTorch); nothing else leaves it out.
"""

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from itertools import product

from setuptools import setup

KERNEL_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
KERNELS = ("direct_conv", "ensemble_kd", "norm_relu")
# Each kernel source is compiled once for each instruction set; the widest that the processor supports is chosen at run
# time. An instruction set: floats in a vector, compiler flags.
BASELINE = {"baseline": (4, [])}  # what the processor family guarantees (SSE2, NEON)
X86_ISAS = {
    "avx2": (8, ["-mavx2", "-mfma", "-mf16c"]),
    "avx512": (
        16,
        [
            "-mavx512f",
            "-mavx512bw",
            "-mavx512dq",
            "-mavx512vl",
            "-mfma",
            "-mf16c",
            "-mprefer-vector-width=512",
        ],
    ),
}
IS_X86_64 = platform.machine().lower() in ("x86_64", "amd64")


def fail(why: str) -> None:
    sys.exit(f"oekd_fast: {why}; OEKD_FAST_NATIVE=0 installs the pure-PyTorch loss instead.")


def native() -> dict:
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler
    except ImportError:
        fail(
            "building needs the torch that will run it: install torch >= 2.10 first, then "
            "`pip install --no-build-isolation .`"
        )
    try:
        subprocess.run([get_cxx_compiler(), "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        fail(f"no C++ compiler (looked for {get_cxx_compiler()!r}; set CXX to name another)")

    class BuildNative(BuildExtension):
        """Compiles the kernel copies, each with its own flags, then the extension around them."""

        def build_extension(self, ext):
            copies = BASELINE | (X86_ISAS if IS_X86_64 else {})
            os.makedirs(self.build_temp, exist_ok=True)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                ext.extra_objects += pool.map(self.compile_copy, product(KERNELS, copies.items()))
            super().build_extension(ext)

        def compile_copy(self, copy):
            kernel, (isa, (lanes, flags)) = copy
            # An absolute path, since torch's ninja links from another folder.
            output = os.path.abspath(os.path.join(self.build_temp, f"{kernel}_{isa}.o"))
            source = f"csrc/cpu/{kernel}/{kernel}_kernel.cpp"
            defines = [f"-DOEKD_ISA={isa}", f"-DOEKD_LANES={lanes}"]
            command = [get_cxx_compiler(), *KERNEL_FLAGS, *flags, *defines, "-Icsrc", "-c", source, "-o", output]
            print(" ".join(command), flush=True)
            subprocess.run(command, check=True)
            return output

    extension = CppExtension(
        "oekd_fast._native",
        [
            "csrc/module.cpp",
            "csrc/cpu/isa.cpp",
            *(f"csrc/cpu/{kernel}/{kernel}_cpu.cpp" for kernel in KERNELS),
            *sorted(glob("csrc/executor/*.cpp")),
        ],
        include_dirs=[os.path.abspath("csrc")],
        define_macros=[("OEKD_HAVE_X86_COPIES", None)] if IS_X86_64 else [],
        extra_compile_args=["-O2", "-fvisibility=hidden"],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildNative}}


setup(**({} if os.environ.get("OEKD_FAST_NATIVE") == "0" else native()))
