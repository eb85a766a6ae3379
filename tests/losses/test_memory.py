"""The compiled loss needs no memory beyond its gradients, measured as the peak resident set of a process."""

import subprocess
import sys

import pytest

from ..conftest import ISAS

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc"),
    pytest.mark.skipif(not ISAS, reason="the native kernels were not built"),
]
LOGITS_MB = 5 * 256 * 32000 * 4 / 1e6
MEASURE = """
import sys
import torch
from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

form, backend, shape, layout = sys.argv[1], sys.argv[2], eval(sys.argv[3]), sys.argv[4]

def peak():  # ru_maxrss would start from the parent's peak
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e6

def tensor(shape):
    # Filled in place, so that no temporary tensor raises the peak beforehand.
    if layout == "classes first":
        return torch.empty(shape[1], shape[0], *shape[2:]).normal_().transpose(0, 1)
    return torch.empty(shape).normal_()

def step(shape):
    logits = [tensor(shape) for _ in range(5)]
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    if layout == "probabilities":
        target = torch.full(shape, 1 / shape[1])
    if form == "out":
        out = [torch.empty_like(z).fill_(0) for z in logits]
        before = peak()
        ensemble_kd_value_and_grad(logits, target, out=out, backend=backend)
    else:
        logits = [z.requires_grad_() for z in logits]
        before = peak()
        ensemble_kd_loss(logits, target, backend=backend).loss.backward()
    return peak() - before

step((8, 100))
print(step(shape))
"""


def growth(form: str, backend: str = "native", shape: tuple[int, ...] = (256, 32000), layout: str = "plain") -> float:
    """Measure the growth of the peak resident set during one call, in MB."""
    command = [sys.executable, "-c", MEASURE, form, backend, repr(shape), layout]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
def test_into_buffers_nothing_is_allocated():
    assert growth("out") < 32


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["plain", "probabilities", "classes first"])
def test_into_buffers_nothing_is_allocated_for_images_of_labels(layout):
    assert growth("out", shape=(2, 19, 512, 512), layout=layout) < 32  # 200 MB of logits


@pytest.mark.slow
def test_into_buffers_a_few_rows_are_copied_whose_classes_are_apart():
    assert growth("out", layout="classes first") < 32 + 2 * 5 * 16 * 32000 * 4 / 1e6  # 16 rows of two threads


@pytest.mark.slow
def test_differentiable_form_allocates_its_gradients_alone():
    actual = growth("backward")
    assert LOGITS_MB / 2 < actual < LOGITS_MB + 32  # the lower bound shows that the measurement works


@pytest.mark.slow
def test_the_measurement_sees_memory_of_the_reference():
    assert growth("out", backend="reference", shape=(32, 32000)) > 5 * 32 * 32000 * 4 / 1e6
