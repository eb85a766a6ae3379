"""The goals of the GPU path, and how results of bench.gpu compare with them. Nothing of torch is imported.

Goals are ratios of times in one run, or shares of the bandwidth of a copy in the same run, so that they mean the same
on each card; the latency of one small call is the exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Parts = Mapping[str, Mapping[str, dict]]  # results by part and case
RESIDENT = (1000, 4096)  # numbers of classes whose rows stay in registers


@dataclass(frozen=True)
class Goal:
    """A figure of each case, and what it should reach.

    Attributes:
        target: Least value, or largest if `at_most`.
        values: Returns the figure by case.
        same_on_cards: Whether the figure can be compared between cards.
    """

    name: str
    target: float
    unit: str
    values: Callable[[Parts], dict[str, float]]
    at_most: bool = False
    same_on_cards: bool = True

    def reached(self, value: float) -> bool:
        return value <= self.target if self.at_most else value >= self.target

    @property
    def text(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.target:g}{self.unit}"


def losses(parts: Parts) -> Iterator[tuple[str, dict]]:
    """Yield the timed sizes of the loss."""
    for results in parts.values():
        yield from ((key, r) for key, r in results.items() if "derived" in r)


def steps(parts: Parts) -> Iterator[tuple[str, dict]]:
    """Yield the timed steps: model and batch size, and the result of one kind."""
    for results in parts.values():
        for key, result in results.items():
            if "speedups" in result:
                yield key.partition(" ")[2], result


def _share_of_copy(parts: Parts) -> dict[str, float]:
    found = {}
    for key, result in losses(parts):
        share = result["derived"].get("value_and_grad", {}).get("share_of_copy")
        if result["classes"] in RESIDENT and share is not None:
            found[key] = 100 * share
    return found


def _latency(parts: Parts) -> dict[str, float]:
    return {
        key: 1e3 * result["device_ms"]["value_and_grad"]["median"]
        for key, result in losses(parts)
        if (result["rows"], result["classes"]) == (128, 100) and "value_and_grad" in result["device_ms"]
    }


def _faster_than(theirs: str) -> Callable[[Parts], dict[str, float]]:
    def values(parts: Parts) -> dict[str, float]:
        found: dict[str, float] = {}
        for size, result in steps(parts):
            factors = [speedups[theirs] for speedups in result["speedups"].values() if theirs in speedups]
            if factors:
                found[size] = max(factors)
        return found

    return values


def _over_largest(parts: Parts) -> dict[str, float]:
    found = {}
    for size, result in steps(parts):
        ms = {name: v["ms"] for name, v in result["variants"].items() if v}
        if "largest_alone" in ms and "ours_captured" in ms:
            found[size] = ms["ours_captured"] / ms["largest_alone"]
    return found


GOALS = (
    Goal("loss in registers, share of a copy's bandwidth", 90, " %", _share_of_copy),
    Goal("loss at 128 x 100, value and grad", 8, " us", _latency, at_most=True, same_on_cards=False),
    Goal("step, times faster than the published form", 8, "x", _faster_than("published")),
    Goal("step, times faster than torch.compile", 2, "x", _faster_than("compiled")),
    Goal("step of the family over its largest student's", 1.5, "x", _over_largest, at_most=True),
)


def lines(parts: Parts) -> Iterator[str]:
    """Yield a table of all goals: figures by case, and whether they are reached."""
    for goal in GOALS:
        values = goal.values(parts)
        yield f"{goal.name}: goal {goal.text}{'' if values else ', not measured'}"
        for case, value in values.items():
            verdict = "reached" if goal.reached(value) else "MISSED"
            yield f"  {case:<28} {value:10.2f}{goal.unit:<3} {verdict}"
