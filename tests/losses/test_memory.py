"""The compiled loss needs no memory beyond its gradients, measured as the peak resident set of a process."""

import sys

import pytest

from ..conftest import ISAS
from ..support import peak_memory
from ..support.forkserver import call_in_new_process

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc"),
    pytest.mark.skipif(not ISAS, reason="the native kernels were not built"),
]
LOGITS_MB = 5 * 256 * 32000 * 4 / 1e6


def growth(form: str, backend: str = "native", shape: tuple[int, ...] = (256, 32000), layout: str = "plain") -> float:
    """Measure the growth of the peak resident set during one call, in MB."""
    return call_in_new_process(peak_memory.of_loss, form, backend, shape, layout)


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
