"""The table of a family's training step on many devices, from the files of bench.model.scale_out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..model.scale_out import ARRANGEMENTS, faster, moves_less
from .markdown import EMPTY, load_all, milliseconds, table


def on_many_devices(results: Path, pattern: str) -> str:
    """Bytes and times of both arrangements, one row for each family and number of devices."""
    contents = load_all(results, pattern)
    heading = (
        "family", "devices", "images a device",
        *(f"{name}, MB" for name in ARRANGEMENTS.values()),
        *(f"{name}, ms" for name in ARRANGEMENTS.values()),
        "moves less", "faster",
    )  # fmt: skip
    caption = (
        "Computed by `bench.model.scale_out`, not measured. MB: what a device sends in a step. ms: the step, with "
        "transfers overlapped - not overlapped. Student parallel: "
        f"{'; '.join(_student_ranks(content) for content in contents)}. "
        f"Assumed: {'; '.join(dict.fromkeys(_assumptions(content['problem']) for content in contents))}."
    )
    return table(heading, [row for content in contents for row in _rows(content)], caption)


def _rows(content: dict) -> Iterator[tuple]:
    problem = content["problem"]
    family = f"{problem['model']} x {problem['students']}, B = {problem['batch_size']:,}"
    for result in content["results"]:
        figures = [result[name] for name in ARRANGEMENTS]
        yield (
            family,
            result["devices"],
            f"{problem['batch_size'] / result['devices']:g}",
            *(EMPTY if each is None else milliseconds(each["megabytes"]) for each in figures),
            *(EMPTY if each is None else _times(each) for each in figures),
            moves_less(result),
            faster(result),
        )


def _times(figures: dict[str, float]) -> str:
    return f"{milliseconds(figures['overlapped'])} - {milliseconds(figures['not_overlapped'])}"


def _student_ranks(content: dict) -> str:
    problem = content["problem"]
    return f"{problem['student_ranks']} ranks compute {problem['model']} {content['balance']:.2f} times as fast as one"


def _assumptions(problem: dict) -> str:
    return (
        f"{problem['link_gb_s']:g} GB/s and {problem['latency_us']:g} us a message, {problem['device_tflops']:g} "
        f"TFLOP/s a device, maps in {problem['precision']}"
    )
