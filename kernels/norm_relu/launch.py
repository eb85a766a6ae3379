"""BatchNorm, residual and ReLU on the GPU: launches of the kernels, and the functions that the ops call.

`oekd_fast.layers.norm_relu` has the schemas, and says for which calls the ops are used.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..common.counters import zeroed
from ..common.launch import Launch
from .backward import FROM_X, FROM_Y, NONE, gradient, gradient_sums
from .forward import normalise, statistics
from .plan import MULTIPROCESSORS, NormReLUPlan, ceil_div, plan_norm_relu, power_of_2

DTYPES = (torch.float32, torch.bfloat16)
MOST_ROWS = 1 << 30  # they are counted in 32 bits


def norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool = True, *,
    isa: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the op ``oekd_fast::norm_relu``; `isa` is ignored.

    Returns:
        y, channels_last like the copy of `x` that is made if it has another layout; mean, variance and rstd, fp32 [C].
    """
    rows = _check(x, {"residual": residual}, {"weight": weight, "bias": bias}, least=2)
    if not relu and residual is not None:
        raise ValueError("residual: expected None where relu is false, got a tensor")
    results, launches = forward_launches(_dense(x), weight, bias, residual, eps, relu, _plan(x, rows))
    for launch in launches:
        launch.run(x.device)
    return results


def norm_relu_backward(
    dy: Tensor, x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor,
    residual_grad: bool, relu: bool = True, *, isa: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the op ``oekd_fast::norm_relu_backward``; `isa` is ignored.

    Returns:
        dx; dweight and dbias, fp32 [C]; dresidual, of shape [0] if `residual_grad` is false.
    """
    vectors = {"weight": weight, "bias": bias, "mean": mean, "rstd": rstd}
    rows = _check(x, {"dy": dy, "y": y}, vectors, least=1)
    if residual_grad and y is None:
        raise ValueError("y: expected a tensor where residual_grad is true, got None")
    if not relu and y is not None:
        raise ValueError("y: expected None where relu is false, got a tensor")
    plan = _plan(x, rows)
    results, launches = backward_launches(dy, _dense(x), y, weight, bias, mean, rstd, residual_grad, relu, plan)
    for launch in launches:
        launch.run(x.device)
    return results


def forward_launches(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool, plan: NormReLUPlan
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], tuple[Launch, Launch]]:
    """Return the results of `norm_relu`, and the launches that write them. `x` is channels_last."""
    y = torch.empty_like(x)
    mean, variance, rstd, scale = (_new(x, x.shape[1]) for _ in range(4))
    of_map, of_sums = _arguments(x, plan)
    first = of_map | of_sums | {
        "x": x, "weight": weight.contiguous(), "mean": mean, "variance": variance, "rstd": rstd, "scale": scale,
        "eps": eps,
    }  # fmt: skip
    second = of_map | {
        "x": x, "residual": None if residual is None else _dense(residual), "y": y,
        "mean": mean, "scale": scale, "bias": bias.contiguous(), "RELU": relu,
    }  # fmt: skip
    return (y, mean, variance, rstd), (
        _launch(statistics, plan.sharing, plan, first),
        _launch(normalise, plan.writing, plan, second),
    )


def backward_launches(
    dy: Tensor, x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor,
    residual_grad: bool, relu: bool, plan: NormReLUPlan,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], tuple[Launch, Launch]]:  # fmt: skip
    """Return the results of `norm_relu_backward`, and the launches that write them. `x` is channels_last."""
    dy, dx = _dense(dy), torch.empty_like(x)
    dweight, dbias, coefficients = (_new(x, number * x.shape[1]) for number in (1, 1, 3))
    dresidual = torch.empty_like(x) if residual_grad else None
    mask = NONE if not relu else FROM_X if y is None else FROM_Y
    of_map, of_sums = _arguments(x, plan)
    of_map |= {"x": x, "mean": mean.contiguous(), "bias": bias.contiguous(), "coefficients": coefficients}
    masking = {"dy": dy, "y": None if y is None else _dense(y), "MASK": mask}
    first = of_map | of_sums | masking | {
        "residual_grad": dresidual, "rstd": rstd.contiguous(), "weight": weight.contiguous(), "weight_grad": dweight,
        "bias_grad": dbias,
    }  # fmt: skip
    masked = {"dy": dresidual, "y": None, "MASK": NONE} if residual_grad else masking
    second = of_map | masked | {"grad": dx}
    results = dx, dweight, dbias, x.new_empty(0) if dresidual is None else dresidual
    return results, (
        _launch(gradient_sums, plan.sharing, plan, first),
        _launch(gradient, plan.writing, plan, second),
    )


def _arguments(x: Tensor, plan: NormReLUPlan) -> tuple[dict, dict]:
    """Return the arguments of all kernels about the map, and those of the kernels that compute sums."""
    channels = x.shape[1]
    of_map = {
        "elements": x.numel(), "tiles": plan.tiles, "channels": channels,
        "vectors": plan.rows * channels // plan.vector, "VECTOR": plan.vector, "BLOCK": plan.block,
    }  # fmt: skip
    of_sums = {
        "shares": _new(x, plan.sharing * 2 * channels), "done": zeroed(plan.columns, x.device), "rows": _rows(x),
        "ROWS": power_of_2(plan.rows), "WIDTH": min(power_of_2(channels), plan.block),
    }  # fmt: skip
    return of_map, of_sums


def _launch(kernel, sharing: int, plan: NormReLUPlan, arguments: dict) -> Launch:
    """Return a launch in which `sharing` programs share the tiles of each column."""
    programs = sharing * plan.columns
    resident = ceil_div(programs, _multiprocessors(arguments["x"].device))
    return Launch(kernel, programs, arguments, {"num_warps": plan.warps}, resident)


def _check(x: Tensor, maps: dict[str, Tensor | None], vectors: dict[str, Tensor], least: int) -> int:
    """Raise ValueError for tensors that the kernels do not support, and return the number of rows."""
    if x.dtype not in DTYPES:
        raise ValueError(f"x: expected float32 or bfloat16, got {x.dtype}")
    if x.dim() != 4 or x.shape[1] == 0:
        raise ValueError(f"x: expected [B, C, H, W] with C >= 1, got {list(x.shape)}")
    rows = _rows(x)
    if not least <= rows < MOST_ROWS:
        raise ValueError(f"x: expected {least} to {MOST_ROWS - 1} values for each channel, got {list(x.shape)}")
    for name, t in maps.items():
        if t is not None and (t.dtype != x.dtype or t.shape != x.shape or t.device != x.device):
            raise ValueError(
                f"{name}: expected {x.dtype} {list(x.shape)} on {x.device} as x, "
                f"got {t.dtype} {list(t.shape)} on {t.device}"
            )
    for name, t in vectors.items():
        if t.dtype != torch.float32 or t.shape != x.shape[1:2] or t.device != x.device:
            raise ValueError(
                f"{name}: expected float32 [{x.shape[1]}] on {x.device}, one number for each channel of x, "
                f"got {t.dtype} {list(t.shape)} on {t.device}"
            )
    return rows


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[1]


def _new(x: Tensor, count: int) -> Tensor:
    return torch.empty(count, dtype=torch.float32, device=x.device)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _plan(x: Tensor, rows: int) -> NormReLUPlan:
    return plan_norm_relu(rows, x.shape[1], x.element_size(), _multiprocessors(x.device))


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else MULTIPROCESSORS
