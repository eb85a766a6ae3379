"""What a case of bench.gpu is measured with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from .device import Device


@dataclass(frozen=True)
class Context:
    """The device, the time and the results so far.

    Attributes:
        deadline: Value of `time.monotonic` at which the part's time is over.
        results: Results by part and case.
    """

    device: Device
    deadline: float
    results: Mapping[str, Mapping[str, dict]]

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.monotonic()
