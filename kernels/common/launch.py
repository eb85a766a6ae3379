"""One launch of a Triton kernel, as data: what is run can also be compiled for another GPU and looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from triton.runtime.interpreter import InterpretedFunction


@dataclass(frozen=True)
class Launch:
    """A kernel, its arguments by name, and how it is laid out on the GPU.

    ``options`` are the compiler's: num_warps, num_stages, maxnreg.
    """

    kernel: Any
    programs: int
    arguments: Mapping[str, Any]
    options: Mapping[str, int]

    def run(self, device: torch.device) -> None:
        """On the device's current stream."""
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self.kernel[(self.programs,)](**self.arguments, **self.options)
        else:
            self.kernel[(self.programs,)](**self.arguments, **self.options)


def interpreted(kernel: Any) -> bool:
    """Whether TRITON_INTERPRET=1 was set when the kernel was made: it then runs on the CPU, slowly."""
    return isinstance(kernel, InterpretedFunction)
