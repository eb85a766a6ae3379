"""pytest-benchmark of the intermediate loss with its gradients, on a GPU: a group a block.

Times are by the wall clock, launches included. `python -m bench.ops.feature_kd` measures device time.
"""

import pytest
import torch

from .feature_kd import BATCH, BLOCKS, VARIANTS, Block, variants

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("text", BLOCKS)
def test_feature_kd(time_call, text, variant):
    block, dtype = Block.parse(text), torch.bfloat16
    call = variants(block, BATCH, dtype, channels_last=True)[variant]

    def call_and_wait():
        call()
        torch.cuda.synchronize()

    time_call(call_and_wait, f"feature_kd {text} bfloat16", block.bytes_moved(BATCH, dtype))
