"""Compile csrc/ for another processor: ``python -m tests.campaigns.cross_compile --compiler "... c++"``.

Every source becomes an object file with the flags of setup.py for a processor that is not x86-64; nothing is linked or
run. The compiler is Clang, for instance that of the package ziglang: ``--compiler "python -m ziglang c++"``. The
headers of PyTorch and Python are those of this interpreter, which has the word size of the target.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

from torch.utils.cpp_extension import include_paths

from oekd_fast.common.machine import machine

RESULT = Path(__file__).parent / "results" / "cross_compile.json"
ROOT = Path(__file__).parents[2]
KERNEL_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno")
BASELINE = ("-DOEKD_ISA=baseline", "-DOEKD_LANES=4")
BINDING_FLAGS = ("-std=c++20", "-O0", "-fPIC", "-fvisibility=hidden", "-DTORCH_EXTENSION_NAME=_executor")


def compile_all(compiler: list[str], target: str) -> dict[str, str | None]:
    """Compile every source, and return by its path the first error of the compiler, or None."""
    includes = [f"-I{path}" for path in (*include_paths(), sysconfig.get_path("include"), ROOT / "csrc")]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((ROOT / "csrc").rglob("*.cpp")):
            kernel = source.name.endswith("_kernel.cpp")
            flags = [*KERNEL_FLAGS, *BASELINE, includes[-1]] if kernel else [*BINDING_FLAGS, *includes]
            output = Path(folder, "object.o")
            command = [*compiler, "-target", target, *flags, "-c", str(source), "-o", str(output)]
            done = subprocess.run(command, capture_output=True, text=True)
            errors = [line for line in done.stderr.splitlines() if "error:" in line]
            name = source.relative_to(ROOT).as_posix()
            found[name] = None if done.returncode == 0 and output.exists() else (errors or ["no output"])[0]
            print(f"{name}: {found[name] or 'compiles'}", flush=True)
            output.unlink(missing_ok=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile csrc/ for another processor.")
    parser.add_argument("--compiler", required=True, help="command of a Clang that has the target's C++ library")
    parser.add_argument("--target", default="aarch64-linux-gnu")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    start = time.perf_counter()
    compiler = shlex.split(options.compiler)
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[
        0
    ]
    found = compile_all(compiler, options.target)
    faults = {name: error for name, error in found.items() if error is not None}
    result = {
        "target": options.target,
        "compiler": version.splitlines()[0],
        "sources": len(found),
        "faults": faults,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "complete": True,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
