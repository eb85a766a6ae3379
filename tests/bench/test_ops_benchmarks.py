"""pytest-benchmark runs the variants of bench/ops, and the normal suite does not collect them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAST = ("--benchmark-min-rounds=2", "--benchmark-max-time=0", "--benchmark-min-time=0", "-p", "no:cacheprovider")


def run(*arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *arguments]
    # pytest-benchmark disables itself in a process that looks like a worker of pytest-xdist.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Run ours at one size, and return the process and the JSON that it wrote."""
    file = tmp_path_factory.mktemp("benchmarks") / "out.json"
    chosen = ("bench/ops/test_ensemble_kd.py", "-k", "128x100 and not compiled")
    done = run(*chosen, "--benchmark-only", *FAST, f"--benchmark-json={file}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads(file.read_text())


@pytest.mark.slow
def test_the_variants_of_a_size_are_one_group(saved):
    done, content = saved
    assert {benchmark["group"] for benchmark in content["benchmarks"]} == {"ensemble_kd 128x100 float32"}
    names = {benchmark["params"]["variant"] for benchmark in content["benchmarks"]}
    assert names == {"eager", "value_and_grad", "differentiable"}
    assert "benchmark 'ensemble_kd 128x100 float32': 3 tests" in done.stdout


@pytest.mark.slow
def test_saved_statistics_are_those_of_the_result_files(saved):
    for benchmark in saved[1]["benchmarks"]:
        timing = benchmark["extra_info"]["milliseconds"]
        assert timing["median"] == pytest.approx(1e3 * benchmark["stats"]["median"], abs=1e-5)
        assert timing["samples"] == benchmark["stats"]["rounds"] >= 2
        assert benchmark["extra_info"]["gigabytes_per_second"] > 0
    assert saved[1]["machine_info"]["oekd_fast"]["threads"] >= 1


def test_the_normal_suite_does_not_collect_the_benchmarks(request):
    assert request.config.getini("testpaths") == ["tests"]
