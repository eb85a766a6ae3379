"""What to look at next, from the results of bench.gpu by fixed rules. Nothing of torch is imported."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from .goals import Parts, losses, steps

Errors = dict[str, dict[str, str]]  # by part and case

# Kernels that only convert: cuDNN's between layouts or to padded channels, and PyTorch's between dtypes.
CONVERSIONS = re.compile(r"AddPadding|nchwToNhwc|nhwcToNchw|[Tt]ransformTensor|tensorTransform")
CASTS = re.compile(r"copy_kernel|CopyFunctor|_copy_")
# Least shares of the time of all kernels, or of the step, that are worth a line.
PADDING_SHARE, CAST_SHARE, IDLE_SHARE = 0.05, 0.10, 0.10
GAIN = 1.05  # times faster that makes a variant worth choosing


def wrong_results(parts: Parts) -> Iterator[str]:
    for part, results in parts.items():
        for key, result in results.items():
            if result.get("right") is False and part != "tests":
                yield f"{part}, {key}: the result is wrong. Mend this before any time is believed."


def failed_tests(parts: Parts) -> Iterator[str]:
    for key, result in parts.get("tests", {}).items():
        if result["failures"] or result["unfinished"]:
            names = [*result["failures"], *result["unfinished"]]
            yield f"{key}: {len(names)} tests fail or do not finish, first {names[0]}."


def missing_executor(parts: Parts) -> Iterator[str]:
    reason = parts.get("environment", {}).get("machine", {}).get("no_executor")
    if reason:
        yield f"The compiled executor is missing, so that students share one stream: {reason}."


def uncaptured_steps(parts: Parts) -> Iterator[str]:
    for size, result in steps(parts):
        for name, reason in result["reasons"].items():
            yield f"{size}: {name} was not measured: {reason}."


def padding_kernels(parts: Parts) -> Iterator[str]:
    for size, name, profile in _profiles(parts):
        share = _share(profile, CONVERSIONS)
        if share >= PADDING_SHARE and name.startswith("ours") and name != "ours_unpadded":
            yield (
                f"{size}, {name}: kernels that pad channels or convert layouts take {100 * share:.0f} % of the "
                "kernels' time. Stored as multiples of 8 (--pad-channels on), channels need none."
            )


def casts(parts: Parts) -> Iterator[str]:
    for size, name, profile in _profiles(parts):
        share = _share(profile, CASTS)
        if share >= CAST_SHARE:
            yield f"{size}, {name}: copies and casts take {100 * share:.0f} % of the kernels' time."


def idle_device(parts: Parts) -> Iterator[str]:
    for size, name, profile in _profiles(parts):
        idle = 1 - profile["busy_share"]
        if idle >= IDLE_SHARE and name.startswith("ours"):
            yield (
                f"{size}, {name}: no kernel runs in {100 * idle:.0f} % of the step ({profile['launches']} kernels). "
                "Fewer and larger launches help here, faster kernels do not."
            )


def better_variants(parts: Parts) -> Iterator[str]:
    for size, result in steps(parts):
        ms = {name: v["ms"] for name, v in result["variants"].items() if v}
        if "ours_captured" not in ms:
            continue
        captured = ms["ours_captured"]
        if ms.get("ours_blocks", captured) * GAIN <= captured:
            yield f"{size}: compiled blocks are {captured / ms['ours_blocks']:.2f}x faster: use --compile-blocks."
        if ms.get("ours_unpadded", captured) * GAIN <= captured:
            faster = captured / ms["ours_unpadded"]
            yield f"{size}: without padded channels a step is {faster:.2f}x faster: use --pad-channels off."
        if "ours_one_stream" in ms and ms["ours_one_stream"] < GAIN * captured:
            gained = ms["ours_one_stream"] / captured
            yield f"{size}: several streams gain {gained:.2f}x over one: kernels do not run at the same time."


def missed_step_goals(parts: Parts) -> Iterator[str]:
    from .goals import GOALS

    longest = {}
    for size, name, profile in _profiles(parts):
        if name == "ours_captured" and profile["kernels"]:
            kernel, number, us = profile["kernels"][0]
            longest[size] = f"{kernel[:60]} ({number} times, {100 * us / profile['total_us']:.0f} %)"
    for goal in GOALS:
        for case, value in goal.values(parts).items():
            if case in longest and not goal.reached(value):
                yield f"{case}: {value:.2f}x misses {goal.text}. The kernel that takes most: {longest[case]}."


def slow_losses(parts: Parts) -> Iterator[str]:
    from .goals import GOALS

    for key, value in GOALS[0].values(parts).items():
        if not GOALS[0].reached(value):
            binds = next(r["derived"]["value_and_grad"].get("binds") for k, r in losses(parts) if k == key)
            yield f"loss {key}: {value:.0f} % of a copy's bandwidth. By the model {binds} bind; see the part plans."
    for key, result in losses(parts):
        wall, device = (result[name].get("value_and_grad", {}).get("median") for name in ("wall_ms", "device_ms"))
        if wall and device and wall > 2 * device:
            yield f"loss {key}: the host takes {1e3 * wall:.0f} us a call, the device {1e3 * device:.1f} us."


RULES: tuple[Callable[[Parts], Iterator[str]], ...] = (
    wrong_results, failed_tests, missing_executor, uncaptured_steps, padding_kernels, idle_device, casts,
    better_variants, missed_step_goals, slow_losses,
)  # fmt: skip


def advice(parts: Parts, errors: Errors) -> list[str]:
    """Return one sentence or two a finding, the most important first, without repetitions."""
    found = [
        f"{part}, {key}: failed: {error.splitlines()[0]}"
        for part, by_key in errors.items()
        for key, error in by_key.items()
    ]
    return list(dict.fromkeys([*found, *(line for rule in RULES for line in rule(parts))]))


def _profiles(parts: Parts) -> Iterator[tuple[str, str, dict]]:
    """Yield the size of a step, the name of the variant, and its profile."""
    for size, result in steps(parts):
        yield from ((size, name, profile) for name, profile in result.get("profiles", {}).items())


def _share(profile: dict, pattern: re.Pattern) -> float:
    return sum(us for name, _, us in profile["kernels"] if pattern.search(name)) / profile["total_us"]
