"""`oekd_fast.train` is a module and a function, whichever is imported first."""

import inspect
import os
import subprocess
import sys

import pytest

import oekd_fast.train
from oekd_fast import TrainConfig, train

ORDERS = {
    "function only": "from oekd_fast import train, TrainConfig",
    "function first": "from oekd_fast import train, TrainConfig; import oekd_fast.train",
    "module first": "import oekd_fast.train; from oekd_fast import train, TrainConfig",
    "main first": "from oekd_fast.train import main; from oekd_fast import train, TrainConfig",
    "attribute": "import oekd_fast; train, TrainConfig = oekd_fast.train, oekd_fast.TrainConfig",
}


# Only torch is imported before the fork: its import takes most of the time of a process.
SCRIPT = """
import os, sys
import torch

for imports in sys.argv[1:]:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    exec(imports)
    import oekd_fast.train as module
    try:
        train(TrainConfig(model="resnet21"))
    except ValueError as error:
        print(train is module, callable(module.train), callable(module.main), error, flush=True)
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_it_can_be_called_whatever_is_imported_first():
    done = subprocess.run([sys.executable, "-c", SCRIPT, *ORDERS.values()], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(ORDERS), done.stdout + done.stderr
    for order, line in zip(ORDERS, lines, strict=True):
        assert line.startswith("True True True model: 'resnet21' is unknown"), order


def test_it_describes_itself():
    assert train is oekd_fast.train
    assert "TrainConfig" in train.__doc__
    assert list(inspect.signature(train).parameters) == ["config", "console"]


def test_it_trains(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("oekd_fast.runs.run.train", lambda config, console: calls.append(config) or {"students": []})
    config = TrainConfig(output_dir=str(tmp_path))
    assert train(config) == {"students": []} and calls == [config]
    assert config.run_folder == tmp_path
