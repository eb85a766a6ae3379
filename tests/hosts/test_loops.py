"""Loops with Accelerate, Fabric and torch.compile: gradients of a batch in parts, on one process and on two."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from ..support.host_examples import EXAMPLES, distance, family, loader, sgd_steps, whole_batch_step

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_accelerate_in_micro_batches_has_the_gradients_of_the_whole_batch(example, parts):
    module, ensemble = example("accelerate_loop"), family()
    module.train(ensemble, loader(32 // parts), micro_batches=parts, cpu=True)
    assert distance(ensemble, whole_batch_step(family())) < 1e-7  # gradients within 1e-6: the rate is 0.1


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_fabric_in_parts_has_the_gradients_of_the_whole_batch(example, parts):
    module, ensemble = example("fabric_loop"), family()
    module.train(ensemble, loader(32), parts=parts, accelerator="cpu")
    assert distance(ensemble, whole_batch_step(family())) < 1e-7


def test_fabric_in_bfloat16(example):
    module, ensemble = example("fabric_loop"), family()
    module.train(ensemble, loader(32), accelerator="cpu", precision="bf16-mixed")
    assert 0 < distance(ensemble, whole_batch_step(family())) < 1e-3


def test_two_ranks_have_the_gradients_of_the_whole_batch_and_refuse_unused_adapters():
    if missing := [package for package in ("accelerate", "lightning") if find_spec(package) is None]:
        pytest.skip(f"{missing[0]} is not installed; pip install 'oekd_fast[integrations]'")
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.host_ranks"]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(line.split() for line in done.stdout.splitlines() if "_loop " in line)
    (error,) = (line for line in done.stdout.splitlines() if line.startswith("error "))
    assert error.startswith("error Expected to have finished reduction in the prior iteration")
    assert found.keys() == {"accelerate_loop", "fabric_loop"}
    assert max(map(float, found.values())) < 1e-7


def test_a_compiled_loop_in_float16_compiles_once_for_batches_with_other_numbers_of_rows(example):
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph.forward

    module, ensemble = example("compiled_loop"), family()
    module.train(ensemble, loader(16), backend=compiler)
    torch.compiler.reset()
    assert len(graphs) == 1
    assert 0 < distance(ensemble, sgd_steps(family(), 16)) < 4e-4
