"""Run a module with the stub: ``python -m bench.stub_cuda MODULE [arguments of the module]``."""

import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from .install import install

with tempfile.TemporaryDirectory() as folder:
    # Another process compiles, since this one must not have imported torch.
    subprocess.run([sys.executable, "-m", "bench.stub_cuda.build", folder], check=True)
    install(Path(folder))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
