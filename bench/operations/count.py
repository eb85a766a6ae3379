"""A dispatch mode that counts the operations that a device would carry out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that launch nothing: they allocate memory or return another view of the same memory, and have no alias
# annotation that says so.
NOTHING = frozenset(
    "aten::" + name
    for name in ("detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")
)
# torch's multi_tensor_apply (ATen/native/cuda/MultiTensorApply.cuh) puts so many tensors into a launch, by the number
# of lists of tensors that the operation takes.
TENSORS_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
# The launches of the ops of this package that make several: statistics and maps (kernels/norm_relu).
LAUNCHES = {"oekd_fast::norm_relu": 2, "oekd_fast::norm_relu_backward": 2}
KINDS = {
    "convolutions": ("convolution", "convolution_backward"),
    "BatchNorm": ("native_batch_norm", "native_batch_norm_backward", "norm_relu", "norm_relu_backward"),
    "ReLU": ("relu", "relu_", "threshold_backward"),
    "pooling": ("avg_pool2d", "avg_pool2d_backward", "mean"),
    "matrices": ("addmm", "mm"),
    "casts": ("_to_copy", "_foreach_copy_"),
    "losses": ("ensemble_kd_value_and_grad", "feature_kd_value_and_grad"),
    "optimizer": ("_fused_sgd_", "_fused_adam_"),
}
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
STATISTICS, SUMS, OTHERS = "running statistics", "sums of maps and gradients", "others"
ALL_KINDS = (*KINDS, STATISTICS, SUMS, OTHERS)


class DeviceOperations(TorchDispatchMode):
    """Counts the operations that reach the dispatcher below autograd and autocast, and the launches that they make.

    Views, allocations and markers of the profiler launch nothing and are not counted. Any other operation counts as
    one. It counts as one launch too, except for operations on lists of tensors and for those in `LAUNCHES`. The kernels
    that a library starts for a convolution, for instance, are not known here.

    Attributes:
        operators: number of operations by operator, such as "aten::convolution".
        kinds: number of operations by kind, the keys of `ALL_KINDS`.
        launches: number of launches by kind.

    Args:
        stand_ins: functions to call in place of operators, by the names of these.
    """

    def __init__(self, stand_ins: dict[str, Callable[..., Any]] | None = None) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self._stand_ins = stand_ins or {}

    def __torch_dispatch__(self, function: OpOverload, types, arguments=(), options=None):
        name, options = function._schema.name, options or {}
        if not launches_nothing(function):
            kind = kind_of(name, arguments)
            self.operators[name] += 1
            self.kinds[kind] += 1
            self.launches[kind] += launches(name, arguments)
        return self._stand_ins.get(name, function)(*arguments, **options)


def launches_nothing(function: OpOverload) -> bool:
    """Return whether an operator does no work on the device."""
    name = function._schema.name
    return function.is_view or name in NOTHING or name.startswith("profiler::")


def launches(name: str, arguments: tuple) -> int:
    """Return the number of launches of an operation as far as it is known, and else 1."""
    if not name.startswith(("aten::_foreach_", "aten::_fused_")):
        return LAUNCHES.get(name, 1)
    lists = [a for a in arguments if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
    return ceil(len(lists[0]) / TENSORS_A_LAUNCH[len(lists)])


def kind_of(name: str, arguments: tuple) -> str:
    """Return the kind of an operation, one of `ALL_KINDS`."""
    name, first = name.partition("::")[2], arguments[0] if arguments else None
    if name == "_foreach_lerp_" or (name == "_foreach_add_" and _is_counter(first[0])):
        return STATISTICS
    if name == "add_" and _is_counter(first):
        return STATISTICS
    if name in ("add", "add_") and first.dim() == 4:
        return SUMS
    return _KIND_OF.get(name, OTHERS)


def _is_counter(x: Tensor) -> bool:
    return x.dim() == 0 and x.dtype == torch.int64
