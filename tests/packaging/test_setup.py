"""Installing: the extension is left out only when asked by name, and what is installed works alone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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


def test_a_missing_compiler_is_one_clear_line(sources):
    failed = setup(sources, "build_ext", CXX="no-such-compiler")
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1] == (
        "oekd_fast: no C++ compiler (looked for 'no-such-compiler'; set CXX to name another); "
        "OEKD_FAST_NATIVE=0 installs the pure-PyTorch loss instead."
    )


def test_a_pure_install_asked_by_name_works_without_the_extension(sources, tmp_path):
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
