"""Plans for the kernels of the loss other than the chosen ones: warps, tiles, programs, lag."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from oekd_fast.kernels.common.launch import Launch
from oekd_fast.kernels.ensemble_kd.launch import Problem, loss_launch
from oekd_fast.kernels.ensemble_kd.plan import WARP, Plan, plan_ensemble_kd, streamed_plan

from ..model.roofline import ITEMSIZES
from ..ops.ensemble_kd import CE_WEIGHT, KD_WEIGHT, STUDENTS, TEMPERATURE
from .context import Context
from .loss import parse

SIZES = ((8192, 1000), (8192, 4096), (8192, 32000), (2048, 128256))
TINY = "1x200 float32"
AT_A_TIME = 6  # plans that are timed in turn with the chosen plan


@dataclass(frozen=True)
class Candidate:
    """A plan, with the lag of a streamed kernel as a multiple of the launcher's."""

    plan: Plan
    lag: float = 1.0

    @property
    def name(self) -> str:
        p = self.plan
        tile = f"{p.regime} rows {p.rows} block {p.block} tiles {p.tiles}"
        return f"{tile} warps {p.warps} x{p.programs_per_sm} lag {self.lag:g}"


def keys(argument: str, tiny: bool) -> list[str]:
    return [TINY] if tiny else [f"{r}x{c} {dtype}" for dtype in ITEMSIZES for r, c in SIZES]


def candidates(students: int, classes: int, itemsize: int) -> list[Candidate]:
    """Return the chosen plan, then others, without repetitions."""
    base = plan_ensemble_kd(students, classes, itemsize)
    found = [Candidate(base)]
    if base.regime == "resident":
        for warps in (base.warps // 4, base.warps // 2, base.warps, 2 * base.warps):
            if 1 <= warps <= 16:
                for warps_on_an_sm in (8, 16, 24, 32):
                    plan = replace(base, warps=warps, programs_per_sm=max(1, warps_on_an_sm // warps))
                    found.append(Candidate(plan))
        if base.warps <= 8 and classes <= 1024:
            fewer = max(1, base.programs_per_sm // 2)
            found.append(Candidate(replace(base, rows=2, warps=2 * base.warps, programs_per_sm=fewer)))
        else:
            found.append(Candidate(streamed_plan(students, itemsize)))
    if base.regime == "streamed":
        found += [Candidate(base, lag) for lag in (0.5, 0.75, 1.5, 2.0)]
        found += [Candidate(replace(base, programs_per_sm=n)) for n in (1, 2, 4, 5, 6)]
        found += [Candidate(replace(base, tiles=max(1, round(base.tiles * f)))) for f in (0.25, 0.5, 1.5, 2, 4)]
        vector = base.block // (WARP * base.warps)
        for warps in (2, 8):
            tiles = max(1, base.tiles * base.warps // warps)
            wide = replace(base, warps=warps, block=WARP * warps * vector, tiles=tiles)
            found += [Candidate(replace(wide, programs_per_sm=n)) for n in (12 // warps or 1, 16 // warps)]
        found.append(Candidate(replace(base, block=2 * base.block, tiles=max(1, base.tiles // 2), programs_per_sm=2)))
    return list(dict.fromkeys(found))


def launch_of(candidate: Candidate, problem: Problem, grads: list[torch.Tensor]) -> tuple[torch.Tensor, Launch]:
    """Return the loss and a launch which can be repeated, since it restores its counters."""
    result, launch = loss_launch(problem, grads, plan=candidate.plan)
    if candidate.lag != 1.0:
        lag = max(1, round(candidate.lag * launch.arguments["lag"]))
        launch = replace(launch, arguments={**launch.arguments, "lag": lag})
    return result.loss, launch


def make_problem(rows: int, classes: int, dtype: torch.dtype, device: str) -> tuple[Problem, list[torch.Tensor]]:
    logits = [torch.empty(rows, classes, dtype=dtype, device=device).normal_(std=4.0) for _ in range(STUDENTS)]
    target = torch.randint(classes, (rows,), device=device)
    problem = Problem(logits, target, None, TEMPERATURE, CE_WEIGHT, KD_WEIGHT, 0.0, -100, True, True)
    return problem, [torch.empty_like(z) for z in logits]


def measure(key: str, context: Context) -> Iterator[dict]:
    """Time every plan of a size against the chosen one; plans that fail or give another loss are left out."""
    rows, classes, dtype = parse(key)
    device = context.device
    problem, grads = make_problem(rows, classes, dtype, device.name)
    base, *others = candidates(STUDENTS, classes, dtype.itemsize)
    others = others[:1] if device.tiny else others
    right, base_launch = launch_of(base, problem, grads)
    base_launch.run(problem.device)
    result = {
        "rows": rows,
        "classes": classes,
        "dtype": str(dtype).removeprefix("torch."),
        "heuristic": base.name,
        "relative": {},  # times as long as the chosen plan, in the same rounds
        "device_ms": {},
        "skipped": {},
    }
    for first in range(0, len(others), AT_A_TIME):
        calls = {base.name: lambda: base_launch.run(problem.device)}
        for candidate in others[first : first + AT_A_TIME]:
            if context.left() < 0:
                result["skipped"][candidate.name] = "no time left"
                continue
            try:
                loss, launch = launch_of(candidate, problem, grads)
                launch.run(problem.device)
                if abs(loss.item() / right.item() - 1) > 1e-5:
                    raise ArithmeticError(f"loss {loss.item()}, expected {right.item()}")
                calls[candidate.name] = lambda launch=launch: launch.run(problem.device)
            except Exception as error:
                if device.lost(error):
                    raise
                result["skipped"][candidate.name] = f"{type(error).__name__}: {error}"[:300]
        timings = device.time(calls, 0.25)
        for name, timing in timings.items():
            result["device_ms"].setdefault(name, timing.as_dict())
            result["relative"].setdefault(name, round(timing.median / timings[base.name].median, 4))
    yield result


def lines(key: str, result: dict) -> Iterator[str]:
    yield f"plans {key}: chosen {result['heuristic']}"
    for name, factor in sorted(result["relative"].items(), key=lambda item: item[1])[:3]:
        yield f"  {factor:.3f} {name}"
