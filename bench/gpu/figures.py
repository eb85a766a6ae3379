"""Figures derived from results of bench.gpu: bandwidths, shares of the lower bounds, speed-ups. Nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..model.roofline import ITEMSIZES, Problem, card_named, differentiable, floor, value_and_grad

STUDENTS = 5
OURS = ("value_and_grad", "differentiable")
THEIRS = ("eager", "compiled", "liger")


def copy_bandwidth(parts: Mapping[str, Mapping[str, dict]]) -> float | None:
    """Return the bytes/s of the largest copy among results by part and case, or None if there is none."""
    copies = [r for results in parts.values() for key, r in results.items() if key.startswith("copy ")]
    return max(copies, key=lambda result: result["bytes"])["gigabytes_per_second"] * 1e9 if copies else None


def derive(result: dict, bandwidth: float | None, card: str = "") -> dict:
    """Return the figures of each variant of one size of the loss.

    Every variant other than "differentiable" is compared with the bytes of loss and gradients in one pass.

    Args:
        result: Of a case of `bench.gpu.loss`.
        bandwidth: Bytes/s of a copy in the same run, if it was measured.
        card: Name of the GPU.
    """
    problem = Problem(STUDENTS, result["rows"], result["classes"], ITEMSIZES[result["dtype"]])
    known = card_named(card)
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
