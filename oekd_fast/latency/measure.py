"""Measure the latency of the students of a family and of their ensemble, within a given time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from oekd_fast.common.machine import machine
from oekd_fast.common.text import reason_of
from oekd_fast.family.gate import Gate
from oekd_fast.family.saved import LoadedStudent
from oekd_fast.latency.eager import Eager
from oekd_fast.latency.networks import Network, networks_of
from oekd_fast.latency.onnx import Onnx, export_in_time, version
from oekd_fast.latency.result import Latency, LatencyReport, Setting
from oekd_fast.latency.timing import LEAST_TURNS, Timing, time_in_turns

SECONDS = 20.0  # of a measurement at the end of a run
LARGE_BATCHES = (64, 32, 16, 8)  # the first one that there is time for is measured beside batch 1
_PLANNED = 0.9  # of the time; calls that take longer than expected have the rest
# Shares of the planned time: that of PyTorch; the end of the export; and that of ONNX Runtime in what is left then. The
# rest is for settings that were left out.
_EAGER_SHARE, _EXPORTED_BY, _ONNX_SHARE = 0.25, 0.95, 0.8
_TARGET = 1.0  # seconds after which a setting with enough turns gets no more


class Runtime(Protocol):
    """A way to call networks.

    Attributes:
        name: one of `oekd_fast.latency.result.RUNTIMES`.
        device: type of the device.
    """

    name: str
    device: str

    def calls(self, threads: int | None, images: Tensor) -> AbstractContextManager[list[Callable[[], float]]]:
        """Return a context with a function for each network, which calls it once and returns the seconds it took.

        Args:
            threads: intra-op threads; None on devices other than the CPU.
            images: uint8 [B, C, H, W] on the CPU.
        """


def measure_students(
    students: Sequence[LoadedStudent],
    flops: Sequence[int],
    gate: Gate | None = None,
    *,
    device: torch.device,
    seconds: float = SECONDS,
    stopping: Callable[[], bool] = lambda: False,
) -> LatencyReport:
    """Measure each student and the ensemble, from uint8 images in memory to logits.

    Each network is called with one image and with a large batch, on one thread and on as many as torch is set to use,
    and on `device` if it is not the CPU; in PyTorch, and in ONNX Runtime if the networks can be exported. The networks
    of a setting take turns. A setting for which there is no time is left out, with a note.

    Args:
        students: students of one family, on the CPU and in evaluation mode. They are on the CPU afterwards, too.
        flops: operations of each student for one image, which tell which calls are long.
        gate: gate of the family; None without one.
        device: device whose latency is measured beside that of the CPU.
        seconds: time that the measurement takes at most, roughly.
        stopping: returns whether to give up; asked before each call. What has been measured is returned.
    """
    metadata = students[0].metadata
    shape = (metadata.in_channels, metadata.image_size, metadata.image_size)
    measurement = _Measurement(networks_of(students, flops, gate), len(students), shape, seconds, stopping)
    devices = [torch.device("cpu")] if device.type == "cpu" else [device, torch.device("cpu")]
    for number, place in enumerate(devices):
        share = (seconds * _PLANNED * _EAGER_SHARE - measurement.elapsed) / (len(devices) - number)
        measurement.add(Eager(measurement.networks, place), share)
    measurement.add_onnx()
    measurement.add_left_out()
    return measurement.report()


class _Measurement:
    """What has been measured so far, and the time that is left.

    Args:
        networks: the students, then the ensemble if there is one.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        num_students: int,
        shape: tuple[int, int, int],
        seconds: float,
        stopping: Callable[[], bool],
    ) -> None:
        self.networks = networks
        self._num_students, self._shape, self._stopping = num_students, shape, stopping
        self._limit, self._seconds = seconds, _PLANNED * seconds
        self._rows: list[list[Latency]] = [[] for _ in networks]
        self._left_out: list[tuple[Runtime, Setting]] = []
        self._order: list[Setting] = []
        self._notes: list[str] = []
        self._machine = machine()
        self._start = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def add(self, runtime: Runtime, share: float) -> None:
        """Measure all settings of `runtime` in about `share` seconds."""
        until = self.elapsed + share
        most = torch.get_num_threads()
        threads = [None] if runtime.device != "cpu" else [most, 1] if most > 1 else [1]
        batches: list[int | None] = [1] * len(threads) + [None] * len(threads)
        for number, (count, batch) in enumerate(zip(threads * 2, batches, strict=True)):
            limit = (until - self.elapsed) / (len(batches) - number)
            if batch is None and number == len(threads):
                large = self._large_batch(runtime, count, limit)
            setting = Setting(runtime.name, runtime.device, count, large if batch is None else batch)
            self._order.append(setting)
            if not self._measure(runtime, setting, limit):
                self._left_out.append((runtime, setting))

    def add_onnx(self) -> None:
        """Export the networks and measure ONNX Runtime, if there is time; note why not otherwise."""
        try:
            models = export_in_time(self.networks, self._seconds * _EXPORTED_BY - self.elapsed, self._stopping)
        except Exception as error:  # the exporter of PyTorch documents no set of exceptions
            self._notes.append(f"onnx: not measured ({reason_of(error)})")
            return
        self._machine["onnxruntime"] = version()
        self.add(Onnx(models), (self._seconds - self.elapsed) * _ONNX_SHARE)

    def add_left_out(self) -> None:
        """Measure the settings that were left out, with the time that is left; note those that it is too short for."""
        for runtime, setting in self._left_out:
            if not self._measure(runtime, setting, self._seconds - self.elapsed):
                why = "the run was asked to stop" if self._stopping() else f"it takes more than {self._limit:g} s"
                self._notes.append(f"{setting}: not measured, since {why}")

    def report(self) -> LatencyReport:
        """Return the results, in the order in which the settings were added."""
        for rows in self._rows:
            rows.sort(key=lambda row: self._order.index(row.setting))
        return LatencyReport(
            students=tuple(map(tuple, self._rows[: self._num_students])),
            ensemble=tuple(row for rows in self._rows[self._num_students :] for row in rows),
            machine=self._machine,
            image_shape=self._shape,
            seconds=self.elapsed,
            notes=tuple(self._notes),
        )

    def _measure(self, runtime: Runtime, setting: Setting, limit: float) -> bool:
        """Add the rows of `setting` and return True, or return False if there is no time."""
        with runtime.calls(setting.threads, self._images(setting.batch)) as calls:
            costs = [network.cost for network in self.networks[: len(calls)]]
            timings = time_in_turns(calls, costs, limit, min(limit, _TARGET), stopping=self._stopping)
        if timings is None:
            return False
        for i, (rows, timing) in enumerate(zip(self._rows, timings, strict=False)):
            larger = timings[:i] if i < self._num_students else []
            rows.append(_latency(setting, timing, larger))
        return True

    def _large_batch(self, runtime: Runtime, threads: int | None, limit: float) -> int:
        """Return the largest of `LARGE_BATCHES` that can be measured within `limit` seconds, judged by the smallest."""
        smallest = LARGE_BATCHES[-1]
        with runtime.calls(threads, self._images(smallest)) as calls:
            costs = [network.cost for network in self.networks[: len(calls)]]
            longest = costs.index(max(costs))
            duration = min(calls[longest]() for _ in range(2))
        turn = duration / smallest * sum(costs) / max(costs)  # seconds for one image
        fitting = (batch for batch in LARGE_BATCHES if (LEAST_TURNS + 2) * turn * batch <= limit)
        return next(fitting, smallest)

    def _images(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, (batch, *self._shape), dtype=torch.uint8, generator=generator)


def _latency(setting: Setting, timing: Timing, larger: Sequence[Timing]) -> Latency:
    return Latency(
        setting,
        median_ms=_milliseconds(timing.median),
        p95_ms=_milliseconds(timing.p95),
        calls=len(timing.durations),
        not_faster_than=tuple(i + 1 for i, other in enumerate(larger) if not timing.is_faster_than(other)),
    )


def _milliseconds(seconds: float) -> float:
    """Return milliseconds in four significant digits."""
    return float(f"{1000 * seconds:.4g}")
