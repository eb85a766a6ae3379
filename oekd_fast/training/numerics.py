"""Precision of a step: autocast, loss scaling, choice of cuDNN's algorithms; the context of forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from oekd_fast.config.run import RunConfig
from oekd_fast.layers.running_statistics import updated_together

_AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def automatic_precision(device: torch.device) -> tuple[Literal["fp32", "bf16"], str]:
    """Return the precision that "auto" stands for on `device`, and the reason in words.

    It is bf16 where a training step is faster in it. On a CPU these are processors with AMX, and AMD's with
    AVX512-BF16, on which a step takes two thirds of its time in fp32. Intel's without AMX have the instructions of
    AVX512-BF16 too, but a step takes 1.4 times as long. Without these instructions convolutions are several times
    slower than in fp32. docs/benchmarks.md has the measurements; a processor with AMX was not at hand.
    """
    if device.type == "cpu":
        # torch 2.10 does not list the features of the processor.
        features = getattr(torch.cpu, "get_capabilities", dict)()
        if features.get("amx_bf16", False):
            return "bf16", "the processor has AMX"
        if not features.get("avx512_bf16", False):
            return "fp32", "the processor does not have AVX512-BF16"
        if str(features.get("cpu_name", "")).startswith("AMD"):
            return "bf16", "the processor has AVX512-BF16"
        return "fp32", "convolutions are slower with AVX512-BF16 on this processor, which has no AMX"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", f"{torch.cuda.get_device_name(device)} computes in bf16"
    return "fp32", f"bf16 is not known to be faster on {device.type}"


def default_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the precision of a config that names none: bf16 on CUDA devices that compute in it, else fp32."""
    return automatic_precision(device)[0] if device.type == "cuda" else "fp32"


@dataclass(frozen=True)
class Numerics:
    """Numerical settings of the networks on one type of device.

    device_type: "cpu", "cuda" or "mps".
    dtype: autocast to this type; None computes in float32.
    deterministic: use cuDNN's deterministic algorithms, and choose them without measuring.
    """

    device_type: str
    dtype: torch.dtype | None
    deterministic: bool

    @classmethod
    def of(cls, config: RunConfig, device: torch.device) -> Numerics:
        precision = config.precision or default_precision(device)
        if precision == "auto":
            precision, _ = automatic_precision(device)
        return cls(device.type, _AUTOCAST_DTYPES[precision], config.deterministic)

    def autocast(self) -> AbstractContextManager:
        """Return the context that runs operators in `dtype` where autocast does."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    @contextmanager
    def algorithms(self) -> Iterator[None]:
        """Have cuDNN measure its algorithms unless `deterministic`; restore the process's settings afterwards.

        Measuring pays because the shapes of a training never change.
        """
        cudnn = torch.backends.cudnn
        before = cudnn.benchmark, cudnn.deterministic
        cudnn.benchmark, cudnn.deterministic = not self.deterministic, self.deterministic
        try:
            yield
        finally:
            cudnn.benchmark, cudnn.deterministic = before


class TrainingForward(AbstractContextManager):
    """Context of the networks' forward passes in a step: autocast, and running statistics updated together at its end.

    It can be entered several times, one after the other.
    """

    def __init__(self, numerics: Numerics) -> None:
        self._numerics = numerics
        self._entered = ExitStack()

    def __enter__(self) -> None:
        with ExitStack() as entered:
            entered.enter_context(updated_together())
            entered.enter_context(self._numerics.autocast())
            self._entered = entered.pop_all()

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)


class LossScaler:
    """Dynamic loss scaling of fp16 steps by `torch.amp.GradScaler`; every method works with scaling disabled too.

    A captured step needs the tensors of the scaler, which torch exposes in private attributes only. This class alone
    uses them, as they are in torch 2.13:

    - `_scale`, `_growth_tracker`: scalars on the device. The first `scale()` creates them, so the constructor calls it.
    - `_per_optimizer_states`: stage of each optimizer within the step at hand; `update()` resets it.
    - `Optimizer._step_supports_amp_scaling`: the optimizer skips an overflowed step on the device.
    """

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        self._one = torch.ones((), device=device)
        self._scaler.scale(self._one)

    @property
    def enabled(self) -> bool:
        return self._scaler.is_enabled()

    def scale(self) -> Tensor | None:
        """Return the factor of all gradients, a scalar on the device; None if scaling is disabled."""
        return self._scaler.scale(self._one) if self.enabled else None

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, so that they can be clipped before `step`."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """Run `optimizer.step()`, which is skipped if a gradient is not finite, and adapt the scale."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def waits_for_device(self, optimizer: Optimizer) -> bool:
        """Return whether `step` reads on the host if gradients are finite, which no CUDA graph can hold."""
        return self.enabled and not getattr(optimizer, "_step_supports_amp_scaling", False)

    def abandon_step(self) -> None:
        """Forget a step that failed between `unscale` and the end of `step`, so that the next one can begin."""
        if self.enabled:
            self._scaler._per_optimizer_states.clear()

    def tensors(self) -> dict[str, Tensor]:
        if not self.enabled:
            return {}
        return {"scale": self._scaler._scale, "growth_tracker": self._scaler._growth_tracker}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `torch.amp.GradScaler`; empty if scaling is disabled."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state)
