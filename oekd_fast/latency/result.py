"""Results of a measurement of latency, and their form in summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from oekd_fast.common.quantities import three_digits

MARK = "*"  # of a student that is not faster than a larger one
RUNTIMES = ("eager", "onnx")  # PyTorch as it is, and ONNX Runtime


@dataclass(frozen=True)
class Setting:
    """How a network was called.

    Args:
        runtime: one of `RUNTIMES`.
        device: type of the device, such as "cpu" or "cuda".
        threads: intra-op threads on the CPU; None on other devices.
        batch: number of images of a call.
    """

    runtime: str
    device: str
    threads: int | None
    batch: int

    @property
    def place(self) -> str:
        """Runtime, and threads or device: "onnx, 2 threads"."""
        if self.threads is None:
            return f"{self.runtime}, {self.device}"
        return f"{self.runtime}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def __str__(self) -> str:
        return f"{self.place}, batch {self.batch}"


@dataclass(frozen=True)
class Latency:
    """Latency of one network in one setting.

    Args:
        setting: how it was called.
        median_ms, p95_ms: median and 95th percentile of the duration of a call, in milliseconds.
        calls: number of timed calls.
        not_faster_than: numbers, from 1, of the larger students that this one is not faster than beyond the noise.
    """

    setting: Setting
    median_ms: float
    p95_ms: float
    calls: int
    not_faster_than: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The median in milliseconds in three digits, after `MARK` if the network is not faster than a larger one.

        The mark is on the left, so that digits in a column that is aligned to the right stay below each other.
        """
        return (MARK if self.not_faster_than else "") + milliseconds(self.median_ms)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as an entry of summary.json, with those of the setting at the same level."""
        own = {name: value for name, value in vars(self).items() if name != "setting"}
        return asdict(self.setting) | own | {"not_faster_than": list(self.not_faster_than)}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Latency:
        """Return the latency that `as_dict` described; the values are not checked."""
        setting = Setting(**{field.name: entry[field.name] for field in fields(Setting)})
        return cls(
            setting, entry["median_ms"], entry["p95_ms"], entry["calls"], tuple(entry["not_faster_than"])
        )  # fmt: skip


@dataclass(frozen=True)
class LatencyReport:
    """Latency of the students of a family and of their ensemble, in the same settings.

    Args:
        students: for each student, one entry per setting.
        ensemble: the same for the ensemble; empty without one.
        machine: processor, versions and threads, from `oekd_fast.common.machine`.
        image_shape: channels, height and width of the images.
        seconds: duration of the measurement.
        notes: one line for each setting that was not measured.
    """

    students: tuple[tuple[Latency, ...], ...]
    ensemble: tuple[Latency, ...]
    machine: dict[str, Any]
    image_shape: tuple[int, int, int]
    seconds: float
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return what all networks share, as in the entry ``latency`` of summary.json."""
        return {
            "machine": self.machine,
            "image_shape": list(self.image_shape),
            "seconds": round(self.seconds, 1),
            "notes": list(self.notes),
        }


def milliseconds(value: float) -> str:
    """Return a duration in milliseconds as text in three digits."""
    return three_digits(value)


def preferred(settings: Sequence[Setting]) -> Setting:
    """Return the setting that is shown where there is room for one.

    That is batch 1, on an accelerator if one was measured, otherwise in ONNX Runtime if it was, with the most threads.
    """

    def rank(setting: Setting) -> tuple[int, bool, int, int]:
        on_cpu = setting.device == "cpu"
        return setting.batch, on_cpu, -RUNTIMES.index(setting.runtime), -(setting.threads or 0)

    return min(settings, key=rank)
