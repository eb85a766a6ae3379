"""One launch of a Triton kernel as data, which can be run, or compiled for another GPU and inspected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from triton.runtime.interpreter import InterpretedFunction

from .triton_launch import launcher


@dataclass(frozen=True)
class Launch:
    """A kernel, its number of programs, its arguments by name, and the compiler's options.

    ``options`` may hold num_warps, num_stages and maxnreg. ``resident`` is the number of programs that a multiprocessor
    must hold at a time, where the number of programs follows from it; 0 asks for none.
    """

    kernel: Any
    programs: int
    arguments: Mapping[str, Any]
    options: Mapping[str, int]
    resident: int = 0

    def run(self, device: torch.device) -> None:
        """Run the kernel on the current stream of `device`."""
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self.kernel[(self.programs,)](**self.arguments, **self.options)
        else:
            self.kernel[(self.programs,)](**self.arguments, **self.options)

    def prepare(self, stream: int) -> Callable[..., None]:
        """Compile the kernel for the current device, to be launched many times without Triton's binding of arguments.

        The arguments of later launches must agree with those of this one in all that Triton specialises a kernel for:
        types, constants, integers equal to 1 or divisible by 16, and addresses divisible by 16.

        Args:
            stream: handle of the CUDA stream to launch on.

        Returns:
            A function that takes all arguments of the kernel by position; addresses may be integers.
        """
        compiled = self.kernel.warmup(grid=(self.programs,), **self.arguments, **self.options)
        return launcher(compiled, self.programs, stream)


def interpreted(kernel: Any) -> bool:
    """Whether TRITON_INTERPRET=1 was set when the kernel was defined. It then runs on the CPU, slowly."""
    return isinstance(kernel, InterpretedFunction)
