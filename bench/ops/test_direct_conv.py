"""pytest-benchmark of the 3x3 convolutions of ResNet-20 x 5 in training, on a CPU: a group a shape.

Only the shapes for which training uses an op of this package are measured. torch.compile calls the same convolution of
PyTorch as eager, so it is not a variant.
"""

import pytest

from oekd_fast import native

from .direct_conv import BATCH, THREADS, VARIANTS, shapes, used, variants

pytestmark = pytest.mark.skipif(native.why_missing() is not None, reason="needs the native extension")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", shapes(), ids=str)
def test_direct_conv(time_call, set_threads, shape, variant):
    if used(shape, BATCH) == "pytorch":
        pytest.skip("PyTorch computes this shape on this processor")
    calls = variants(shape, BATCH)
    if variant not in calls:
        pytest.skip("this form does not support the shape")
    set_threads(THREADS)
    maps = shape.channels * shape.size**2 + shape.outputs * (-(-shape.size // shape.stride)) ** 2
    time_call(calls[variant], f"direct_conv {shape}", bytes_moved=2 * 4 * BATCH * maps)
