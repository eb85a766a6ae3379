"""The ops of the native backend, which raise ValueError for wrong arguments with every version of torch."""

from __future__ import annotations

import torch

from oekd_fast.common.op_errors import raising_value_error
from oekd_fast.losses import schemas  # noqa: F401  defines the ops

ensemble_kd_value = raising_value_error(torch.ops.oekd_fast.ensemble_kd_value)
ensemble_kd_value_and_grad = raising_value_error(torch.ops.oekd_fast.ensemble_kd_value_and_grad)
ensemble_kd_value_and_grad_out = raising_value_error(torch.ops.oekd_fast.ensemble_kd_value_and_grad_out)
