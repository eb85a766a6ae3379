"""The disturbances of the stress tests for a GPU, in Triton's interpreter, which runs one program after the other."""

import pytest
import torch

from ..conftest import INTERPRETED

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl
from triton.runtime import interpreter

from oekd_fast.kernels.common.delay import DELAYS, delay
from oekd_fast.kernels.ensemble_kd.launch import loss_launch

from ..support import stress
from ..support.ensemble_kd_launches import PLANS, case, problem

pytestmark = pytest.mark.skipif(
    not INTERPRETED, reason="tests/losses/test_ensemble_kd_gpu_stress.py disturbs launches on a GPU"
)
CPU = torch.device("cpu")


@triton.jit
def delayed_kernel(delays, out, key):
    delay(delays, key)
    tl.store(out + key, key)


def test_a_delay_takes_as_many_loads_as_its_table_says(monkeypatch):
    volatile = []
    load = interpreter.InterpreterBuilder.create_load

    def counted(self, pointer, cache, eviction, is_volatile):
        volatile.append(is_volatile)
        return load(self, pointer, cache, eviction, is_volatile)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_load", counted)
    delays, out = stress.random_delays(5, 0, CPU), torch.zeros(2 * DELAYS.value, dtype=torch.int32)
    assert delays[:-1].min() == 0 and delays[:-1].max() == 5 and delays[-1] == 1
    key = DELAYS.value + int(delays[:-1].argmax())
    delayed_kernel[(1,)](delays, out, key)
    assert out[key] == key
    assert volatile == [False, *(True,) * 5]


@pytest.mark.parametrize("name", ["rows", "one row", "chunks"])
def test_disturbed_launches_return_the_same_bits(name):
    logits, target = case(rows=3, students=2)
    given = problem(logits, target, detach_ensemble=False)
    expected = stress.loss_and_gradients(given, PLANS[name])
    disturbed = stress.loss_and_gradients(given, PLANS[name], stress.random_delays(2, 1, CPU))
    assert all(tensor.isfinite().all() for tensor in expected)
    assert all(torch.equal(a, b) for a, b in zip(disturbed, expected, strict=True))


@pytest.mark.parametrize("name", ["one row", "chunks"])
def test_poison_reaches_every_workspace(name):
    logits, target = case()
    _, launch = loss_launch(problem(logits, target), plan=PLANS[name], keep_rows=True)
    workspaces = [launch.arguments[n] for n in ("row_statistics", "partials", "loss", "counted")]
    if name == "chunks":
        workspaces.append(launch.arguments["chunk_statistics"])
    assert all(workspace.isnan().all() for workspace in workspaces)
    assert not launch.arguments["counters" if name == "chunks" else "done"].any()
