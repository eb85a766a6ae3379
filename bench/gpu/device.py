"""What bench.gpu needs of a GPU: timers, graphs, profiles, memory. `Rehearsal` is the stand-in of a dry run."""

from __future__ import annotations

import gc
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from oekd_fast.kernels.common.launch import Launch

from .. import gpu_timing
from ..measure import Timing, interleave
from ..ops import feature_kd
from ..ops.variants import compiled
from ..step.command import MIN_SAMPLE
from ..step.problem import Step, StepProblem
from ..step.variants import build
from .profile import Kernel, kernels_of, peak_extra_bytes, profiler_sees_kernels

Call = Callable[[], object]


class Device(Protocol):
    """The device that cases run on.

    Attributes:
        name: As torch names it.
        tiny: Whether sizes are those of a dry run.
        card: Name of the GPU.
    """

    name: str
    tiny: bool

    @property
    def card(self) -> str: ...

    def time(self, calls: dict[str, Call], seconds: float, repetitions: int = 1) -> dict[str, Timing]:
        """Time calls of `repetitions` each on the device, in turn."""
        ...

    def time_cold(self, calls: dict[str, Call], rounds: int) -> dict[str, Timing]:
        """Time calls on the device, in turn, with an empty second-level cache before each."""
        ...

    def time_steps(self, calls: dict[str, Call], seconds: float) -> dict[str, Timing]:
        """Time calls by the clock of the host, in turn."""
        ...

    def time_on_host(self, call: Call, calls: int, samples: int) -> Timing:
        """Time calls in a row by the clock of the host."""
        ...

    def captured(self, call: Call, repetitions: int) -> Call:
        """Capture calls as one graph."""
        ...

    def kernels(self, call: Call) -> list[Kernel] | None:
        """Return the kernels of a call in the order of their starts; None if the machine does not allow profiles."""
        ...

    def peak_bytes(self, call: Call) -> int:
        """Return how far a call raises the allocated memory at its peak."""
        ...

    def compiled(self, function: Callable) -> Callable:
        """Compile a function by torch.compile."""
        ...

    def compile(self, launch: Launch) -> None:
        """Compile a kernel into Triton's cache."""
        ...

    def step(self, name: str, problem: StepProblem) -> tuple[Step, dict[str, float]]:
        """Build a variant of the training step; return it with its peak memory and the time of its first step."""
        ...

    def checked(self, module: str, seconds: float) -> tuple[str, int]:
        """Run a module under compute-sanitizer's memcheck; return its output and its exit status."""
        ...

    def free(self) -> None:
        """Release memory that nothing uses."""
        ...

    def lost(self, error: Exception) -> bool:
        """Return whether an error left the device unusable for this process."""
        ...


class Cuda:
    """The current CUDA device."""

    name, tiny = "cuda", False

    def __init__(self) -> None:
        self._profiles: bool | None = None

    @property
    def card(self) -> str:
        return torch.cuda.get_device_name()

    def time(self, calls: dict[str, Call], seconds: float, repetitions: int = 1) -> dict[str, Timing]:
        return gpu_timing.in_turn(calls, seconds, repetitions)

    def time_cold(self, calls: dict[str, Call], rounds: int) -> dict[str, Timing]:
        return feature_kd.time_on_gpu(calls, rounds)

    def time_steps(self, calls: dict[str, Call], seconds: float) -> dict[str, Timing]:
        return interleave(calls, seconds, MIN_SAMPLE, calls_before=2, wait=torch.cuda.synchronize)

    def time_on_host(self, call: Call, calls: int, samples: int) -> Timing:
        return gpu_timing.wall_milliseconds(call, calls, samples)

    def captured(self, call: Call, repetitions: int) -> Call:
        return gpu_timing.captured(call, repetitions)

    def kernels(self, call: Call) -> list[Kernel] | None:
        if self._profiles is None:
            self._profiles = profiler_sees_kernels()
        return kernels_of(call) if self._profiles else None

    def peak_bytes(self, call: Call) -> int:
        return peak_extra_bytes(call)

    def compiled(self, function: Callable) -> Callable:
        return compiled(function)

    def compile(self, launch: Launch) -> None:
        launch.kernel.warmup(**launch.arguments, **launch.options, grid=(launch.programs,))

    def step(self, name: str, problem: StepProblem) -> tuple[Step, dict[str, float]]:
        self.free()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.monotonic()
        variant = build(name, problem)
        torch.cuda.synchronize()
        first_step = time.monotonic() - start
        variant.step()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        return variant, {"peak_memory_mb": round(peak / 1e6, 1), "first_step_seconds": round(first_step, 1)}

    def checked(self, module: str, seconds: float) -> tuple[str, int]:
        return run_checked([sanitizer(), "--tool", "memcheck", "--error-exitcode", "9"], module, seconds)

    def free(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def lost(self, error: Exception) -> bool:
        """Out of memory and failed captures leave the device usable."""
        if isinstance(error, torch.cuda.OutOfMemoryError) or "CUDA error" not in str(error):
            return False
        try:
            torch.cuda.synchronize()
            return torch.ones(2, device="cuda").sum().item() != 2
        except RuntimeError:
            return True


def sanitizer() -> str:
    """Return the path of compute-sanitizer.

    Raises:
        FileNotFoundError: it is neither on PATH nor in the folder of CUDA.
    """
    from torch.utils.cpp_extension import CUDA_HOME

    places = [None, *(str(Path(home, "bin")) for home in (CUDA_HOME, "/usr/local/cuda") if home)]
    for place in places:
        if found := shutil.which("compute-sanitizer", path=place):
            return found
    raise FileNotFoundError("compute-sanitizer: expected it on PATH or in CUDA_HOME/bin, found none")


def run_checked(wrapper: Sequence[str], module: str, seconds: float) -> tuple[str, int]:
    """Run ``python -m module`` under a wrapper; return its output and its exit status."""
    import sys

    from .runner import ROOT

    command: list[Any] = [*wrapper, sys.executable, "-m", module]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=max(1.0, seconds)
    )
    return done.stdout, done.returncode
