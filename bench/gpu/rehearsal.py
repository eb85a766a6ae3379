"""The stand-in for a GPU in a dry run: calls run once on the CPU, kernels in Triton's interpreter.

Times, profiles and memory are placeholders, the same in each run. A captured step is replayed by calling it again, and
torch.compile is left out.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from importlib import import_module

import torch

from oekd_fast.kernels.common.launch import Launch

from ..measure import Timing
from ..step.problem import Step, StepProblem
from ..step.variants import build
from .device import Call
from .profile import Kernel

BYTES = 4_000_000
# As a profile of a step may look: a copy that pads channels, a convolution, and a pause before the last kernel.
PROFILE = (
    Kernel("void cudnn::ops::nhwcAddPaddingKernel<__nv_bfloat16, float, true>(int)", 0.0, 40.0),
    Kernel("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x64", 40.0, 60.0),
    Kernel("void at::native::vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda>", 80.0, 100.0),
)


class Replay:
    """Stands in for the recorder of CUDA graphs: a replay runs the call."""

    def warm_up(self, call: Callable[[], None], times: int) -> None:
        call()

    def record(self, call: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        return call

    def needed_bytes(self) -> int:
        return BYTES

    def free_bytes(self) -> int:
        return BYTES

    def mark(self) -> Callable[[], None]:
        return lambda: None


class Rehearsal:
    """Implements `Device` on the CPU."""

    name, tiny, card = "cpu", True, "H100 80GB HBM3 (placeholder of a dry run)"

    def time(self, calls: dict[str, Call], seconds: float, repetitions: int = 1) -> dict[str, Timing]:
        for call in calls.values():
            call()
        return {name: Timing(2.0 + i, 1.5 + i, 2.5 + i, 10) for i, name in enumerate(calls)}

    def time_cold(self, calls: dict[str, Call], rounds: int) -> dict[str, Timing]:
        return self.time(calls, 0.0)

    def time_steps(self, calls: dict[str, Call], seconds: float) -> dict[str, Timing]:
        return self.time(calls, seconds)

    def time_on_host(self, call: Call, calls: int, samples: int) -> Timing:
        return self.time({"": call}, 0.0)[""]

    def captured(self, call: Call, repetitions: int) -> Call:
        return call

    def kernels(self, call: Call) -> list[Kernel] | None:
        call()
        return list(PROFILE)

    def peak_bytes(self, call: Call) -> int:
        call()
        return BYTES

    def compiled(self, function: Callable) -> Callable:
        return function

    def compile(self, launch: Launch) -> None:
        pass

    def step(self, name: str, problem: StepProblem) -> tuple[Step, dict[str, float]]:
        plain = {"compiled": "eager", "ours_blocks": "ours_captured"}.get(name, name)
        return build(plain, problem, Replay()), {"peak_memory_mb": BYTES / 1e6, "first_step_seconds": 0.0}

    def checked(self, module: str, seconds: float) -> tuple[str, int]:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            import_module(module).main()
        return output.getvalue() + "========= ERROR SUMMARY: 0 errors\n", 0

    def free(self) -> None:
        pass

    def lost(self, error: Exception) -> bool:
        return False
