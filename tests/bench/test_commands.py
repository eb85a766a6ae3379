"""Every benchmark command starts, and the packages of bench import in one direction."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the bottom up; a package imports only packages before it.
ORDER = (
    "measure",
    "gpu_timing",
    "result_file",
    "stub_cuda",
    "ops",
    "step",
    "operations",
    "model",
    "gpu",
    "codegen",
    "students",
    "evidence",
    "readme",
)
COMMANDS = (
    *(f"bench.ops.{op}" for op in ("autograd_floor", "direct_conv", "ensemble_kd", "ensemble_kd_shapes", "feature_kd")),
    "bench.ops.norm_relu",
    *(
        "bench.step",
        "bench.step.probe",
        "bench.model.roofline",
        "bench.model.scale_out",
        "bench.gpu",
        "bench.gpu.worker",
        "bench.gpu.compare",
        "bench.gpu.pack",
    ),
    *("bench.step.direct_convs", "bench.step.evaluation", "bench.step.openmp_waiting"),
    *("bench.step.precisions", "bench.step.ranks"),
    *(
        "bench.codegen",
        "bench.students.widths",
        "bench.readme.pictures",
        "bench.readme.tables",
        "bench.readme.training",
    ),
)
NEED_TRITON = ("bench.codegen",)  # it changes the environment at import


def package_of(file: Path) -> str:
    return file.relative_to(ROOT / "bench").parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """Return the packages and modules directly below bench that a file imports."""
    depth = len(file.relative_to(ROOT / "bench").parts)
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_its_options(command, monkeypatch, capsys):
    if command in NEED_TRITON:
        pytest.importorskip("triton", reason="needs triton")
        done = subprocess.run([sys.executable, "-m", command, "--help"], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    else:  # in this process, since a new one takes seconds to import torch
        monkeypatch.setattr(sys, "argv", [command, "--help"])
        monkeypatch.delitem(sys.modules, command, raising=False)
        with pytest.raises(SystemExit, match="0"):
            runpy.run_module(command, run_name="__main__")
        printed = capsys.readouterr().out
    assert printed.startswith("usage:") and "(default: None)" not in printed


@pytest.mark.parametrize("file", sorted((ROOT / "bench").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_packages_import_in_one_direction(file):
    own = package_of(file)
    if own == "__init__":
        return
    allowed = {own, *ORDER[: ORDER.index(own)]}
    assert imported(file) <= allowed


def test_no_file_is_longer_than_400_lines():
    files = [*(ROOT / "bench").rglob("*.py"), *(ROOT / "tests" / "bench").rglob("*.py")]
    assert [file.name for file in files if len(file.read_text().splitlines()) >= 400] == []
