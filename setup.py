"""Builds the native extension. All other packaging metadata is in pyproject.toml.

Set OEKD_FAST_NATIVE=0 to install without the extension (pure PyTorch). Without this variable a missing compiler is an
error. A rebuild compiles only what is older than its sources; delete build/ to compile everything, for instance after a
change of compiler.
"""

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import setup
from setuptools.modified import newer_group

KERNEL_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
# Instruction set -> (floats in a vector, compiler flags). Every 64-bit processor has the baseline (SSE2 or NEON).
ISAS = {
    "baseline": (4, []),
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
# AVX-512 with conversions between fp32 and bf16.
ISAS["avx512bf16"] = (16, [*ISAS["avx512"][1], "-mavx512bf16"])
# Each kernel source of an op, csrc/cpu/<op>/*_kernel.cpp, is compiled once for each of its instruction sets. At run
# time the widest one that the processor supports is chosen.
KERNELS = {
    "direct_conv": ("baseline", "avx2", "avx512"),
    "ensemble_kd": ("baseline", "avx2", "avx512"),
    "norm_relu": ("baseline", "avx2", "avx512", "avx512bf16"),
}
IS_X86_64 = platform.machine().lower() in ("x86_64", "amd64")


def fail(why: str) -> None:
    sys.exit(f"oekd_fast: {why}; OEKD_FAST_NATIVE=0 installs the pure-PyTorch loss instead.")


def is_current(output: Path, depfile: Path) -> bool:
    """Whether `output` is newer than setup.py and every file that the compiler read for it, as listed in `depfile`."""
    if not depfile.exists():
        return False
    dependencies = depfile.read_text().partition(":")[2].replace("\\\n", " ").split()
    return not newer_group(["setup.py", *dependencies], str(output), missing="newer")


def native() -> dict:
    """Return the arguments of `setup` that build the extension.

    Raises:
        SystemExit: torch or a C++ compiler is missing, or the system is Windows.
    """
    if sys.platform == "win32":
        fail("the extension is built with GCC or Clang, on Linux and macOS")
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
        """Compiles each kernel for each instruction set, then links these objects into the extension."""

        def build_extension(self, ext):
            os.makedirs(self.build_temp, exist_ok=True)
            copies = [
                (source, isa)
                for op, isas in KERNELS.items()
                for source in sorted(glob(f"csrc/cpu/{op}/*_kernel.cpp"))
                for isa in isas
                if IS_X86_64 or isa == "baseline"
            ]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                ext.extra_objects += pool.map(self.compile_copy, *zip(*copies, strict=True))
            super().build_extension(ext)

        def compile_copy(self, source: str, isa: str) -> str:
            lanes, flags = ISAS[isa]
            # The path is absolute because ninja, which torch calls, links from another folder.
            output = Path(self.build_temp, f"{Path(source).stem}_{isa}.o").absolute()
            depfile = output.with_suffix(".d")
            if not is_current(output, depfile):
                options = [*KERNEL_FLAGS, *flags, f"-DOEKD_ISA={isa}", f"-DOEKD_LANES={lanes}", "-Icsrc"]
                dependencies = ["-MMD", "-MF", str(depfile)]  # without system headers
                command = [get_cxx_compiler(), *options, *dependencies, "-c", source, "-o", str(output)]
                print(" ".join(command), flush=True)
                subprocess.run(command, check=True)
            return str(output)

    extension = CppExtension(
        "oekd_fast._native",
        [
            "csrc/module.cpp",
            "csrc/cpu/isa.cpp",
            "csrc/cpu/memory.cpp",
            "csrc/cpu/populate.cpp",
            *sorted(set(glob("csrc/cpu/*/*.cpp")) - set(glob("csrc/cpu/*/*_kernel.cpp"))),
            *sorted(glob("csrc/executor/*.cpp")),
        ],
        depends=["setup.py", *sorted(glob("csrc/**/*.*", recursive=True))],
        include_dirs=[os.path.abspath("csrc")],
        define_macros=[("OEKD_HAVE_X86_COPIES", None)] if IS_X86_64 else [],
        extra_compile_args=["-O2", "-fvisibility=hidden"],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildNative}}


setup(**({} if os.environ.get("OEKD_FAST_NATIVE") == "0" else native()))
