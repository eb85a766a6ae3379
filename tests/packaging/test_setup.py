"""Building and installing: with compiled code unless OEKD_FAST_NATIVE=0, and rebuilding only what changed."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from oekd_fast import __version__
from oekd_fast.common.executor_file import executor_file

ROOT = Path(__file__).resolve().parents[2]
# Stands in for a compiler: writes the files that it is asked for, and logs the kernels that it compiles.
COMPILER = r"""#!{python}
import sys
from pathlib import Path

options = dict(zip(sys.argv, sys.argv[1:]))
if "-o" in options:
    Path(options["-o"]).write_text("")
if "-MF" in options:
    Path(options["-MF"]).write_text(f"{{options['-o']}}: {{options['-c']}} \\\n csrc/cpu/simd/vec.h\n")
if options.get("-c", "").endswith("_kernel.cpp"):
    with open({log!r}, "a") as log:
        print(Path(options["-c"]).stem, file=log)
"""
SOURCES = ("csrc", "kernels", "oekd_fast", "LICENSE", "README.md", "pyproject.toml", "setup.py")


@pytest.fixture
def sources(tmp_path) -> Path:
    copy = tmp_path / "sources"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    return copy


def setup(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_missing_compiler_is_one_clear_line(sources):
    failed = setup(sources, "build_ext", CXX="no-such-compiler")
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1] == (
        "oekd_fast: no C++ compiler (looked for 'no-such-compiler'; set CXX to name another); "
        "OEKD_FAST_NATIVE=0 installs the pure-PyTorch loss instead."
    )


@pytest.mark.slow
def test_an_install_with_oekd_fast_native_0_works_without_the_extension(sources, tmp_path):
    built = setup(sources, "bdist_wheel", "--dist-dir", str(tmp_path), OEKD_FAST_NATIVE="0", CXX="no-such-compiler")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(installed)
    assert not [name for name in names if name.endswith(".so")]
    packages = {str(path.relative_to(ROOT)) for path in ROOT.glob("oekd_fast/**/__init__.py")}
    assert packages | {"oekd_fast/paper/tables.json"} <= set(names)
    assert "oekd_fast/kernels/__init__.py" in names and not [name for name in names if name.startswith("kernels/")]
    code = (
        "import torch, oekd_fast\n"
        "loss = oekd_fast.ensemble_kd_loss([torch.zeros(2, 4)] * 3, torch.tensor([0, 1])).loss\n"
        "print(oekd_fast.__file__, round(loss.item(), 5))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True,
    )  # fmt: skip
    file, loss = run.stdout.split()
    assert Path(file).is_relative_to(installed) and loss == "2.91122", run.stderr


@pytest.mark.slow
def test_a_rebuild_compiles_only_the_kernels_that_changed(sources, tmp_path):
    compiler, log = tmp_path / "compiler", tmp_path / "log"
    compiler.write_text(COMPILER.format(python=sys.executable, log=str(log)))
    compiler.chmod(0o755)

    def compiled() -> dict[str, int]:
        log.write_text("")
        built = setup(sources, "build_ext", "--inplace", CXX=str(compiler))
        assert built.returncode == 0, built.stderr
        return Counter(log.read_text().split())

    first = compiled()
    assert {"ensemble_kd_kernel", "norm_relu_kernel"} <= set(first)
    assert not compiled()
    (sources / "csrc/cpu/norm_relu/norm_relu_kernel.cpp").touch()
    assert compiled() == {"norm_relu_kernel": first["norm_relu_kernel"]}
    (sources / "csrc/cpu/simd/vec.h").touch()
    assert compiled() == first


@pytest.mark.slow
def test_a_wheel_fits_later_pythons_and_names_the_torch_of_its_executor(sources, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER.format(python=sys.executable, log=str(tmp_path / "log")))
    compiler.chmod(0o755)
    built = setup(sources, "bdist_wheel", "--dist-dir", str(tmp_path), CXX=str(compiler))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"oekd_fast-{__version__}-cp310-abi3-")
    with zipfile.ZipFile(wheel) as archive:
        compiled = {name for name in archive.namelist() if name.endswith(".so")}
    assert compiled == {"oekd_fast/_kernels.so", f"oekd_fast/{executor_file()}"}
    assert f"torch-{torch.__version__.partition('+')[0]}-" in executor_file()
