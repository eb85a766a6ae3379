"""Builds the compiled code of csrc/. All other packaging metadata is in pyproject.toml.

oekd_fast/_kernels.so holds the CPU kernels. It uses torch's stable ABI and no Python, so one build serves every torch
from 2.10 on and every Python. oekd_fast/_executor.*.so is a Python module that uses all of torch's C++ API. It serves
the torch and Python that it is built with, which its name says; oekd_fast/native.py opens no other.

Set OEKD_FAST_NATIVE=0 to install without them (pure PyTorch). Without this variable a missing compiler is an error. A
rebuild compiles only what is older than its sources; delete build/ to compile everything, for instance after a change
of compiler.
"""

import os
import platform
import runpy
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.modified import newer_group

KERNELS, EXECUTOR = "oekd_fast._kernels", "oekd_fast._executor"
KERNEL_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
# Sources of the kernels' library that use torch: its stable ABI, as of torch 2.10.
STABLE_FLAGS = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-DTORCH_STABLE_ONLY",
                "-DTORCH_TARGET_VERSION=0x020a000000000000"]  # fmt: skip
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
ISAS_OF = {
    "direct_conv": ("baseline", "avx2", "avx512"),
    "ensemble_kd": ("baseline", "avx2", "avx512"),
    "feature_kd": ("baseline", "avx2", "avx512"),
    "norm_relu": ("baseline", "avx2", "avx512", "avx512bf16"),
    "winograd": ("baseline", "avx2", "avx512"),
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


def objects(include_paths: list[str]) -> dict[str, tuple[str, list[str]]]:
    """Return the object files of the kernels' library by name, with the source and the flags of each."""
    found = {}
    for op, isas in ISAS_OF.items():
        for source in sorted(glob(f"csrc/cpu/{op}/*_kernel.cpp")):
            for isa in isas:
                if IS_X86_64 or isa == "baseline":
                    lanes, flags = ISAS[isa]
                    flags = [*KERNEL_FLAGS, *flags, f"-DOEKD_ISA={isa}", f"-DOEKD_LANES={lanes}"]
                    found[f"{Path(source).stem}_{isa}"] = source, flags
    copies = ["-DOEKD_HAVE_X86_COPIES"] if IS_X86_64 else []
    torch = [part for path in include_paths for part in ("-isystem", path)]
    kernels = {source for source, _ in found.values()}
    for source in ["csrc/kernels.cpp", *sorted(glob("csrc/cpu/**/*.cpp", recursive=True))]:
        if source not in kernels:
            found[Path(source).stem] = source, [*STABLE_FLAGS, *copies, *torch]
    return found


def native() -> dict:
    """Return the arguments of `setup` that build the compiled code.

    Raises:
        SystemExit: torch or a C++ compiler is missing, or the system is Windows.
    """
    if sys.platform == "win32":
        fail("the extension is built with GCC or Clang, on Linux and macOS")
    try:
        from torch.utils.cpp_extension import (
            BuildExtension,
            CppExtension,
            get_cxx_compiler,
            include_paths,
            library_paths,
        )
    except ImportError:
        fail(
            "building needs the torch that will run it: install torch >= 2.10 first, then "
            "`pip install --no-build-isolation .`"
        )
    try:
        subprocess.run([get_cxx_compiler(), "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        fail(f"no C++ compiler (looked for {get_cxx_compiler()!r}; set CXX to name another)")
    executor_file = runpy.run_path("oekd_fast/common/executor_file.py")["executor_file"]()
    files = {"_kernels": "_kernels.so", "_executor": executor_file}

    def run(*command: str) -> None:
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True)

    class BuildNative(BuildExtension):
        """Builds the kernels' library with the flags of each instruction set, and the executor as torch does."""

        def get_ext_filename(self, fullname):
            *folders, name = fullname.split(".")
            return os.path.join(*folders, files[name])

        def build_extension(self, ext):
            if ext.name == KERNELS:
                return self.build_kernels()
            # Objects that were compiled with another torch are not used again.
            folder, self.build_temp = self.build_temp, os.path.join(self.build_temp, executor_file)
            super().build_extension(ext)
            self.build_temp = folder

        def build_kernels(self) -> None:
            os.makedirs(self.build_temp, exist_ok=True)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                built = list(pool.map(self.compile, *zip(*objects(include_paths()).items(), strict=True)))
            output = self.get_ext_fullpath(KERNELS)
            if newer_group(["setup.py", *built], output, missing="newer"):
                os.makedirs(os.path.dirname(output), exist_ok=True)
                torch = [f"-L{path}" for path in library_paths()]
                run(get_cxx_compiler(), "-shared", *built, *torch, "-ltorch_cpu", "-o", output)

        def compile(self, name: str, how: tuple[str, list[str]]) -> str:
            source, flags = how
            output = Path(self.build_temp, f"{name}.o")
            depfile = output.with_suffix(".d")
            if not is_current(output, depfile):
                dependencies = ["-MMD", "-MF", str(depfile)]  # without system headers
                run(get_cxx_compiler(), *flags, "-Icsrc", *dependencies, "-c", source, "-o", str(output))
            return str(output)

    def sources(ending: str) -> list[str]:
        return [
            file for folder in ("autograd", "executor", "launch") for file in sorted(glob(f"csrc/{folder}/*{ending}"))
        ]

    executor = CppExtension(
        EXECUTOR,
        ["csrc/executor_module.cpp", *sources(".cpp")],
        depends=["setup.py", *sources("")],
        include_dirs=[os.path.abspath("csrc")],
        extra_compile_args=["-O2", "-g0", "-fvisibility=hidden"],
    )
    return {
        "ext_modules": [Extension(KERNELS, []), executor],
        "cmdclass": {"build_ext": BuildNative},
        # The wheel fits every later Python, although its executor does not; see oekd_fast/native.py.
        "options": {"bdist_wheel": {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp310"}},
    }


setup(**({} if os.environ.get("OEKD_FAST_NATIVE") == "0" else native()))
