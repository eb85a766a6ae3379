"""The table of a family's training step, from results of bench.step and bench.gpu."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .markdown import EMPTY, load_all, machines, milliseconds, table

SIZES = (("resnet20", 128), ("resnet20", 512), ("resnet110", 128), ("resnet110", 512))  # model, batch size
VARIANTS = {
    "published": "published form",
    "eager": "eager",
    "eager_nchw": "eager, NCHW",
    "compiled": "torch.compile",
    "ours_eager": "ours, eager",
    "ours_captured": "ours, captured",
    "ours_one_stream": "captured, one stream",
    "ours_unpadded": "captured, unpadded",
    "ours_blocks": "captured, compiled blocks",
    "largest_alone": "largest alone",
    "sequential": "each alone in turn",
}
THEIRS = ("published", "eager_best", "compiled")


@dataclass(frozen=True)
class Row:
    """A size on a device.

    Attributes:
        ms: Milliseconds of each measured variant.
        disagree: Variants which trained differently from the published form.
        factors: How many times as long as ours each of `THEIRS` takes, measured side by side.
    """

    size: str
    device: str
    ms: dict[str, float]
    disagree: set[str]
    factors: dict[str, float]

    def cells(self, variants: Iterable[str]) -> list[str]:
        def time(name: str) -> str:
            if name not in self.ms:
                return EMPTY
            return milliseconds(self.ms[name]) + " (trains differently)" * (name in self.disagree)

        faster = " / ".join(f"{self.factors[name]:.2f}" if name in self.factors else EMPTY for name in THEIRS)
        return [self.size, self.device, *map(time, variants), faster]


def training_steps(results: Path, cpu_pattern: str, gpu_pattern: str) -> str:
    """The measured sizes; a column is left out if no size has a value for it."""
    on_cpu, reports = load_all(results, cpu_pattern), load_all(results, gpu_pattern)
    rows = [row for row in (*_cpu_rows(on_cpu), *_gpu_rows(reports)) if row.ms]
    variants = [name for name in VARIANTS if any(name in row.ms for row in rows)]
    heading = ("family", "device", *(VARIANTS[name] for name in variants), "times faster")
    captions = [f"CPU: {machines(on_cpu)}."] if on_cpu else []
    for where in (report["environment"] for report in reports):
        captions.append(f"{where.get('gpu')}, bf16: torch {where.get('torch')}, commit {where.get('commit')}.")
    caption = (
        "Milliseconds a step, median. Times faster: ours than the published form / the better eager layout / "
        f"torch.compile. {' '.join(captions)}"
    )
    return table(heading, [row.cells(variants) for row in rows], caption)


def _cpu_rows(results: list[dict]) -> Iterable[Row]:
    for processor in dict.fromkeys(result["machine"]["cpu_capability"] for result in results):
        here = [result for result in results if result["machine"]["cpu_capability"] == processor]
        for model, batch in SIZES:
            of_size = _of_size(here, model, batch)
            yield _row(of_size, model, batch, f"CPU, {processor}", "ours_eager", _disagree(of_size))


def _gpu_rows(reports: list[dict]) -> Iterable[Row]:
    for report in reports:
        results = [
            result for of_part in report["parts"].values() for result in of_part.values() if "variants" in result
        ]
        card = report["environment"].get("gpu", "GPU")
        for model, batch in SIZES:
            # bench.gpu compares the curves of one size, and the verdict holds for all sizes.
            yield _row(_of_size(results, model, batch), model, batch, card, "ours_captured", _disagree(results))


def _of_size(results: list[dict], model: str, batch: int) -> list[dict]:
    """Select the results which timed this size of the paper's family."""
    size = {"model": model, "batch_size": batch, "num_students": 5, "image_size": 32}
    return [r for r in results if "variants" in r and "speedups" in r and size.items() <= r["problem"].items()]


def _row(results: list[dict], model: str, batch: int, device: str, ours: str, disagree: set[str]) -> Row:
    """Merge the results of a size; the first result that has a variant gives its time."""
    ms: dict[str, float] = {}
    factors: dict[str, float] = {}
    for result in reversed(results):
        ms |= {name: figures["ms"] for name, figures in result["variants"].items() if figures}
        factors |= result["speedups"].get(ours, {})
    return Row(f"{model} x 5, B = {batch}", device, ms, disagree, factors)


def _disagree(results: list[dict]) -> set[str]:
    """Variants which failed the agreement check of bench.step, or of the curves section of bench.gpu."""
    checks = [r if "allowed" in r else r.get("agreement", {"variants": {}}) for r in results]
    return {name for check in checks for name, v in check["variants"].items() if not v["agrees"]}


def on_ranks(results: Path, pattern: str) -> str:
    """Return the step of one process and of several ranks of a machine, against the fastest of them."""
    blocks = []
    for report in load_all(results, pattern):
        (result,) = report["results"]
        times = result["milliseconds"]
        fastest = min(timing["median"] for timing in times.values())
        rows = [
            (name, milliseconds(t["median"]), f"{t['lower']:.0f} to {t['upper']:.0f}", f"{t['median'] / fastest:.2f}")
            for name, t in times.items()
        ]
        caption = (
            f"{result['model']} x {result['students']}, {result['batch_size']} images of 32x32 a step, fp32, medians "
            f"and quartiles, interleaved. A rank adds up {result['sent_bytes'] / 1e6:.3f} MB of gradients and "
            f"statistics a step, as `bench.model.scale_out` computes. A vote takes "
            f"{result['vote_milliseconds']['median']:.2f} ms. {machines([report])}."
        )
        blocks.append(table(("processes", "ms", "quartiles", "against the fastest"), rows, caption))
    return "\n".join(blocks)


def precisions(results: Path, pattern: str) -> str:
    """Return the step of the family and of its largest student in fp32 and bf16."""
    blocks = []
    for report in load_all(results, pattern):
        (result,) = report["results"]
        times, problem = result["milliseconds"], result["problem"]
        rows = [
            (name, milliseconds(t["median"]), f"{t['lower']:.0f} to {t['upper']:.0f}")
            + (f"{times['fp32']['median'] / t['median']:.2f}" if "alone" not in name else EMPTY,)
            for name, t in times.items()
        ]
        caption = (
            f"{problem['model']} x {problem['num_students']}, B = {problem['batch_size']}, milliseconds a step, "
            f"medians and quartiles, interleaved. {machines([report])}."
        )
        blocks.append(table(("step", "ms", "quartiles", "times as fast as fp32"), rows, caption))
    return "\n".join(blocks)
