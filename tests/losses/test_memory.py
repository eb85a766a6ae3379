"""The compiled loss needs no memory beyond its gradients, measured as the peak resident set of a process."""

import subprocess
import sys

import pytest

from ..conftest import ISAS

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc"),
    pytest.mark.skipif(not ISAS, reason="the native extension was not built"),
]
LOGITS_MB = 5 * 256 * 32000 * 4 / 1e6
MEASURE = """
import sys
import torch
from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

form, backend, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])

def peak():  # ru_maxrss would start from the parent's peak
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e6

def step(rows, classes):
    # Filled in place, so that no temporary tensor raises the peak beforehand.
    logits = [torch.empty(rows, classes).normal_() for _ in range(5)]
    target = torch.randint(classes, (rows,))
    if form == "out":
        out = [torch.empty_like(z).fill_(0) for z in logits]
        before = peak()
        ensemble_kd_value_and_grad(logits, target, out=out, backend=backend)
    else:
        logits = [z.requires_grad_() for z in logits]
        before = peak()
        ensemble_kd_loss(logits, target, backend=backend).loss.backward()
    return peak() - before

step(8, 100)
print(step(rows, 32000))
"""


def growth(form: str, backend: str = "native", rows: int = 256) -> float:
    """Measure the growth of the peak resident set during one call, in MB."""
    command = [sys.executable, "-c", MEASURE, form, backend, str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
def test_into_buffers_nothing_is_allocated():
    assert growth("out") < 32


@pytest.mark.slow
def test_differentiable_form_allocates_its_gradients_alone():
    actual = growth("backward")
    assert LOGITS_MB / 2 < actual < LOGITS_MB + 32  # the lower bound shows that the measurement works


@pytest.mark.slow
def test_the_measurement_sees_memory_of_the_reference():
    assert growth("out", backend="reference", rows=32) > 5 * 32 * 32000 * 4 / 1e6
