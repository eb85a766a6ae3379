"""The pure-PyTorch path needs nothing of Linux: it imports, trains and resumes without it."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Packages that oekd_fast uses are imported first: on another system they are built for it.
CHILD = """
import importlib, pkgutil, sys
import matplotlib.backends.backend_agg, matplotlib.style, numpy, rich.progress, safetensors.torch, sklearn.datasets
import torch, torch._dynamo, torch.utils.flop_counter, tyro
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from tests.support.other_system import imitate
imitate()

import oekd_fast
for module in pkgutil.walk_packages(oekd_fast.__path__, "oekd_fast."):
    if not module.name.startswith(("oekd_fast.kernels", "oekd_fast._")):  # Triton and the compiled code
        importlib.import_module(module.name)
assert oekd_fast.native.isa() is None
import oekd_fast.train

def run(command, *arguments):
    sys.argv = [command.__name__, *arguments]
    status = command.main()
    assert status == 0, (arguments, status)

family = ["--dataset", "digits", "--model", "resnet20", "--num-students", "2", "--train-images", "40",
          "--batch-size", "16", "--output-dir", "run", "--epochs", "2", "--latency", "off"]
run(oekd_fast.train, *family)
run(oekd_fast.train, *family, "--resume")
print("leftovers", [name for name in __import__("os").listdir("run") if name.endswith((".tmp", ".lock"))])
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the imitation asks /proc which files are open")
def test_it_imports_trains_and_resumes_without_what_linux_alone_has(tmp_path):
    command = [sys.executable, "-X", "warn_default_encoding", "-c", textwrap.dedent(CHILD), str(ROOT)]
    environment = {**os.environ, "COLUMNS": "80", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "leftovers []"
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"summary.json", "report.png", "students"}
