"""Install one wheel for several versions of PyTorch and Python, and run the tests of the losses with each.

    python -m tests.campaigns.wheel --wheel dist/oekd_fast-*.whl --in python3.11=2.13.0 --in python3.12=2.10.0

``--in PYTHON=TORCH`` names an interpreter and the version of torch that pip installs for it. Each gets a new virtual
environment, in which nothing is compiled and the checkout is not found: the tests run in a copy, without those that
need a GPU, interpret Triton kernels or take long. Afterwards the environment is deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from oekd_fast.common.machine import machine

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).parent / "results" / "wheel.json"
COPIED = ("pyproject.toml", "bench", "tests/__init__.py", "tests/conftest.py", "tests/losses", "tests/support")
PACKAGES = ("numpy", "pytest", "pytest-xdist", "hypothesis", "setuptools")
CHOSEN = "not gpu and not interpreter and not slow"
# Prints what the wheel offers there: the loss on the kernels, and whether the executor is loaded.
PROBE = """
import json, platform, torch, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from oekd_fast import ensemble_kd_loss, native
logits = [torch.full((2, 3), float(j), requires_grad=True) for j in range(2)]
ensemble_kd_loss(logits, torch.tensor([0, 1]), backend="native").loss.backward()
print(json.dumps({
    "python": platform.python_version(), "torch": torch.__version__, "installed": native.__file__,
    "instruction_sets": native.isa_names(), "kernels": native.why_missing() or "loaded",
    "executor": native.why_no_executor() or "loaded",
    "warnings": [str(w.message) for w in caught if "oekd_fast" in w.filename],
}))
"""


class Environment:
    """A virtual environment with one torch and the wheel, below a folder."""

    def __init__(self, folder: Path, interpreter: str, torch: str, wheel: Path) -> None:
        self._folder, self._python = folder, folder / "venv" / "bin" / "python"
        self._quiet = {**os.environ, "PYTHONPATH": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        subprocess.run([interpreter, "-m", "venv", str(folder / "venv")], check=True, env=self._quiet)
        self._pip(f"torch=={torch}", *PACKAGES)
        self._pip("--no-deps", "--no-index", str(wheel))

    def _pip(self, *arguments: str) -> None:
        command = [str(self._python), "-m", "pip", "install", "-q", "--only-binary", ":all:", *arguments]
        subprocess.run(command, check=True, env=self._quiet)

    def probe(self) -> dict[str, Any]:
        """Return the versions, and what of the compiled code is loaded."""
        command = [str(self._python), "-c", PROBE]
        done = subprocess.run(command, check=True, cwd=self._folder, env=self._quiet, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout)
        if not Path(found.pop("installed")).is_relative_to(self._folder):
            raise RuntimeError("oekd_fast: expected the installed wheel, got another installation")
        return found

    def run_tests(self, workers: int) -> dict[str, Any]:
        """Run the tests of the losses in a copy, and return their numbers and the names of those that fail."""
        copy, log = self._folder / "copy", self._folder / "tests.xml"
        for name in COPIED:
            source, target = ROOT / name, copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        # Where the executor does not fit, a warning says so at the first import; tests make warnings errors.
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "-n",
            str(workers),
            "-m",
            CHOSEN,
            "-W",
            "ignore:executor:UserWarning",
        ]
        command = [str(self._python), "-m", "pytest", *options, f"--junitxml={log}", "tests/losses"]
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=copy, env=self._quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            print(done.stdout[-6000:], flush=True)
        cases = list(ElementTree.parse(log).getroot().iter("testcase"))
        failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
        return {
            "tests": len(cases),
            "skipped": sum(case.find("skipped") is not None for case in cases),
            "failed": [f"{case.get('classname')}.{case.get('name')}" for case in failed],
            "seconds": round(time.perf_counter() - start, 1),
        }


def main() -> int:
    """Run the command line; the exit status is 1 if the kernels do not load or a test fails in an environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True, help="wheel to install")
    parser.add_argument("--in", dest="pairs", action="append", required=True, metavar="PYTHON=TORCH",
                        help="interpreter and version of torch; repeatable")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="processes of pytest (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result (default: %(default)s)")
    options = parser.parse_args()
    wheel, environments = options.wheel.resolve(), []
    for pair in options.pairs:
        interpreter, _, torch = pair.partition("=")
        with tempfile.TemporaryDirectory() as folder:
            environment = Environment(Path(folder).resolve(), interpreter, torch, wheel)
            found = environment.probe() | environment.run_tests(options.workers)
        print(f"{pair}: kernels {found['kernels']}, executor {found['executor']}; {found['tests']} tests, "
              f"{len(found['failed'])} failed, {found['skipped']} skipped", flush=True)  # fmt: skip
        environments.append(found)
    content = {"campaign": "wheel", "wheel": wheel.name, "bytes": wheel.stat().st_size, "environments": environments,
               "machine": machine(), "complete": True}  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if all(found["kernels"] == "loaded" and not found["failed"] for found in environments) else 1


if __name__ == "__main__":
    raise SystemExit(main())
