"""pytest-benchmark of BatchNorm, residual and ReLU in training, on a CPU: a group a size."""

import pytest

from .norm_relu import SIZES, THREADS, VARIANTS, bytes_moved, variants


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("size", SIZES, ids=["x".join(map(str, size)) for size in SIZES])
def test_norm_relu(time_call, set_threads, size, residual, variant):
    set_threads(THREADS)
    call = variants(*size, residual)[variant]
    group = f"norm_relu {'x'.join(map(str, size))}{' residual' * residual}"
    time_call(call, group, bytes_moved(*size, residual))
