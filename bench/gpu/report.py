"""Figures derived from a report of bench.gpu: bandwidths, shares of the lower bounds, speed-ups. No GPU is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..model.roofline import CARDS, ITEMSIZES, Problem, differentiable, floor, value_and_grad
from ..step.command import agreement_lines, table

STUDENTS = 5
OURS = ("value_and_grad", "differentiable")
THEIRS = ("eager", "compiled", "liger")


def copy_bandwidth(report: dict) -> float | None:
    """Return the bytes/s of the largest copy that the report holds, or None if it holds none."""
    results = report.get("sections", {}).get("copy", {}).get("results", {})
    if not results:
        return None
    return max(results.values(), key=lambda result: result["bytes"])["gigabytes_per_second"] * 1e9


def derive(result: dict, bandwidth: float | None, card: str = "") -> dict:
    """Return the figures of each variant of one size of the loss.

    Every variant other than "differentiable" is compared with the bytes of loss and gradients in one pass.

    Args:
        result: A result of the section "loss".
        bandwidth: Bytes/s of a copy in the same run, if it was measured.
        card: Name of the GPU.
    """
    problem = Problem(STUDENTS, result["rows"], result["classes"], ITEMSIZES[result["dtype"]])
    known = next((c for name, c in CARDS.items() if name in card), None)
    derived = {}
    for name, timing in result["device_ms"].items():
        cost = (differentiable if name == "differentiable" else value_and_grad)(problem)
        seconds = timing["median"] / 1e3
        figures = {"bytes": cost.bytes, "gigabytes_per_second": round(cost.bytes / seconds / 1e9, 1)}
        if bandwidth:
            figures["share_of_copy"] = round(cost.bytes / seconds / bandwidth, 4)
        if bandwidth and known:
            at_best = floor(cost, replace(known, copy_bandwidth=bandwidth))
            figures["share_of_floor"] = round(at_best.seconds / seconds, 4)
            figures["binds"] = at_best.binds
        derived[name] = figures
    for ours in set(OURS) & derived.keys():
        derived[ours]["faster_than"] = {
            theirs: round(result["device_ms"][theirs]["median"] / result["device_ms"][ours]["median"], 2)
            for theirs in THEIRS
            if theirs in result["device_ms"]
        }
    return derived


def lines(report: dict) -> Iterator[str]:
    """Yield the whole report as lines of text."""
    where = report.get("environment", {})
    yield ", ".join(f"{name} {value}" for name, value in where.items())
    sections = report.get("sections", {})
    for name, section in sections.items():
        for key, error in section.get("errors", {}).items():
            yield f"ERROR {name} {key}: {error.strip().splitlines()[-1][:200] if error.strip() else ''}"
        if section.get("not_run"):
            yield f"not run, {name}: {', '.join(section['not_run'])}"
    tests = sections.get("tests", {})
    if "counts" in tests:
        yield f"tests: {', '.join(f'{count} {name}' for name, count in tests['counts'].items()) or 'none ran'}"
        for name, result in tests["files"].items():
            yield f"  {name}: {result['ended']}, {result['counts']}"
            yield from (f"    {message}" for message in result.get("messages", ()))
            yield from (f"    did not finish: {test}" for test in result.get("unfinished", ()))
    for key, result in sections.get("copy", {}).get("results", {}).items():
        yield f"copy {key}: {result['gigabytes_per_second']:.0f} GB/s"
    bandwidth = copy_bandwidth(report)
    for key, result in sections.get("loss", {}).get("results", {}).items():
        yield from _loss_lines(key, result, derive(result, bandwidth, where.get("gpu", "")))
    for key, result in sections.get("sweep", {}).get("results", {}).items():
        best = sorted(result["relative"].items(), key=lambda item: item[1])[:3]
        yield f"plans {key}: chosen {result['heuristic']}; " + ", ".join(
            f"{factor:.3f} {name}" for name, factor in best
        )
    for key, result in sections.get("feature", {}).get("results", {}).items():
        times = ", ".join(f"{name} {t['median']:.4f}" for name, t in result["milliseconds_in_graph"].items())
        yield f"features {key}, ms in a graph: {times}"
    for key, result in sections.get("step", {}).get("results", {}).items():
        yield f"{key}:"
        yield from (f"  {line}" for line in step_lines(result))


def step_lines(result: dict) -> Iterator[str]:
    """Yield a case of the training step as lines: times, use of the GPU and lower bounds, or the agreement."""
    if "looking_at" in result:
        yield f"agreement: ended during {result['looking_at']}, not compared"
        return
    if "allowed" in result:
        yield from agreement_lines(result)
        return
    yield from table(result)
    for name, busy in result.get("busy", {}).items():
        yield (
            f"{name}: {busy['launches']} launches, busy {100 * busy['busy_share']:.0f} % of"
            f" {busy['milliseconds']:.2f} ms, {busy['running']:.2f} at a time"
        )
    if floors := result.get("floor_ms"):
        yield "floor, ms: " + ", ".join(f"{name} {value:.2f}" for name, value in floors.items())
    factors = step_targets(result)
    if factors:
        yield ", ".join(f"{name} {factor:.2f}x" for name, factor in factors.items())


def step_targets(result: dict) -> dict[str, float]:
    """Return the captured step's time over its lower bounds and over the largest student, and what streams gain."""
    ms = {name: v["ms"] for name, v in result["variants"].items() if v}
    if "ours_captured" not in ms:
        return {}
    ours = ms["ours_captured"]
    factors = {f"time over the {name} floor": ours / value for name, value in result.get("floor_ms", {}).items()}
    if "largest_alone" in ms:
        factors["time over the largest alone"] = ours / ms["largest_alone"]
    if "ours_one_stream" in ms:
        factors["gained by streams"] = ms["ours_one_stream"] / ours
    return {name: round(factor, 3) for name, factor in factors.items()}


def _loss_lines(key: str, result: dict, derived: dict) -> Iterator[str]:
    columns = "device ms, eager wall ms, GB/s, % of copy, % of floor, extra MB, launches"
    yield f"loss {key} ({result['cache']} cache): {columns}"
    for name, timing in result["device_ms"].items():
        d = derived[name]
        wall = result["wall_ms"].get(name, {}).get("median")
        extra = result["peak_extra_bytes"].get(name)
        yield (
            f"  {name:<15} {timing['median']:9.4f} [{timing['lower']:.4f}, {timing['upper']:.4f}]"
            f" {_figure(wall, '9.4f')} {d['gigabytes_per_second']:7.0f} {_percent(d.get('share_of_copy'))}"
            f" {_percent(d.get('share_of_floor'))} {_figure(extra and extra / 1e6, '8.1f')}"
            f" {_figure(result['launches'].get(name), '4d')}"
            + "".join(f"  {factor}x {theirs}" for theirs, factor in d.get("faster_than", {}).items())
        )
    for name, why in result["skipped"].items():
        yield f"  {name:<15} not measured: {why.splitlines()[0][:160]}"


def _figure(value: float | None, form: str) -> str:
    return "-".rjust(int(form.split(".")[0].rstrip("d"))) if value is None else format(value, form)


def _percent(share: float | None) -> str:
    return "    -" if share is None else f"{100 * share:5.1f}"
