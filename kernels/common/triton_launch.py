"""Launches of a compiled kernel without what Triton does for each launch in Python.

This is the only module that uses interfaces of Triton's launcher which are not public: those of Triton 3.6 and 3.7 on
NVIDIA GPUs. With other versions, other devices, or hooks that observe launches, such as those of Triton's profiler,
kernels are launched through the public interface.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import triton
from triton import knobs


def launcher(compiled: Any, programs: int, stream: int) -> Callable[..., None]:
    """Return a function that launches a kernel with all its arguments by position; addresses may be integers.

    Args:
        compiled: the kernel as Triton has compiled it for the current device.
        programs: number of programs.
        stream: handle of the CUDA stream to launch on.
    """
    public = partial(compiled[(programs, 1, 1)], stream=stream)
    direct = _direct(compiled, programs, stream)
    if direct is None:
        return public

    def launch(*arguments: Any) -> None:
        enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        if (enter is None or not enter.calls) and (leave is None or not leave.calls):
            direct(arguments)
        else:
            public(*arguments)

    return launch


def _direct(compiled: Any, programs: int, stream: int) -> Callable[[tuple], None] | None:
    """Return Triton's compiled launcher with everything bound but the kernel's arguments; None if it is unknown."""
    version = tuple(map(int, triton.__version__.split(".")[:2]))
    run = compiled.run
    if version not in ((3, 6), (3, 7)) or type(run).__name__ != "CudaLauncher":
        return None
    if run.global_scratch_size or run.profile_scratch_size:
        return None
    scratch = hooks = None, None
    first = programs, 1, 1, stream, compiled.function, run.launch_cooperative_grid, run.launch_pdl
    metadata = compiled.packed_metadata, None
    if version == (3, 7):
        return partial(run.launch, *first, *metadata, *hooks, *scratch, run.arg_annotations, run.kernel_signature)
    launch = partial(run.launch, *first, *scratch, *metadata, *hooks)
    return lambda arguments: launch(*arguments)
