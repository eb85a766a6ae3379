"""pytest-benchmark of the ensemble distillation loss with its gradients, on a CPU: a group a size."""

import pytest
import torch

from .ensemble_kd import SIZES, VARIANTS, bytes_moved, variants


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rows, classes", SIZES, ids=[f"{rows}x{classes}" for rows, classes in SIZES])
def test_ensemble_kd(time_call, rows, classes, variant):
    call = variants(rows, classes)[variant]
    time_call(call, f"ensemble_kd {rows}x{classes} float32", bytes_moved(rows, classes, torch.float32))
