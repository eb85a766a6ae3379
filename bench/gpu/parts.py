"""The parts of a run of bench.gpu in their order, and the time that each of them gets."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

ENOUGH = 0.5  # a part starts only with this share of its seconds left
MOST = 2.0  # times its seconds that a part may take while other parts left time


@dataclass(frozen=True)
class Part:
    """Cases that one process measures.

    Attributes:
        modules: Modules of bench.gpu with the cases, in order. Each has `keys(argument, tiny)`, the names of its
            cases, `measure(key, context)`, which yields results, each of which replaces the one before, and
            `lines(key, result)`, the rows of the table.
        seconds: Time that the part should need at most.
        level: 1 for what a short run measures; parts of the next level follow when all of this one have run.
        argument: What the modules measure, such as the name of a network.
    """

    name: str
    modules: tuple[str, ...]
    seconds: float
    level: int
    argument: str = ""


# The seconds of level 1 add up to five minutes.
PARTS = (
    Part("environment", ("environment",), 25, 1),
    Part("compile", ("compile",), 35, 1),
    Part("smoke", ("smoke_losses", "smoke_step", "copy"), 35, 1),
    Part("step resnet20", ("step",), 35, 1, "step resnet20 128"),
    Part("step resnet110", ("step",), 45, 1, "step resnet110 128"),
    Part("loss", ("copy", "loss"), 40, 1, "few"),
    Part("options resnet20", ("step",), 35, 1, "options resnet20 128"),
    Part("options resnet110", ("step",), 50, 1, "options resnet110 128"),
    Part("compiled resnet20", ("step",), 120, 2, "compiled resnet20 128"),
    Part("memcheck", ("memcheck",), 45, 2),
    Part("tests", ("tests",), 150, 2),
    Part("published resnet20", ("step",), 40, 3, "published resnet20 128"),
    Part("published resnet110", ("step",), 60, 3, "published resnet110 128"),
    Part("compiled resnet110", ("step",), 180, 3, "compiled resnet110 128"),
    Part("feature", ("feature",), 40, 3),
    Part("norm", ("norm",), 60, 3),
    Part("loss, other sizes", ("copy", "loss"), 90, 3, "others"),
    Part("step, 512 images", ("step",), 90, 3, "step resnet20 512, step resnet110 512"),
    Part("plans", ("sweep",), 60, 3),
    Part("curves", ("step",), 120, 3, "curves resnet20 128"),
)
LEVELS = tuple(sorted({part.level for part in PARTS}))


def named(name: str) -> Part:
    """Return the part of this name.

    Raises:
        ValueError: there is none.
    """
    for part in PARTS:
        if part.name == name:
            return part
    raise ValueError(f"part: expected one of {', '.join(p.name for p in PARTS)}, got {name!r}")


def planned(parts: Iterable[Part], seconds: float) -> list[Part]:
    """Return the parts, in order, whose times together fit `seconds`."""
    found = []
    for part in parts:
        if part.seconds <= seconds:
            found.append(part)
            seconds -= part.seconds
    return found


def limit(part: Part, plan: Collection[Part], left: float) -> float | None:
    """Return the seconds that a part may take, or None if there is too little time for it.

    A planned part may use what earlier parts left, but not the time of planned parts that follow. The others, which
    start when the plan is done, may use all that is left.

    Args:
        plan: Planned parts that have not started, with or without this one.
        left: Seconds left of the run.
    """
    if left < ENOUGH * part.seconds:
        return None
    later = sum(other.seconds for other in plan if other != part)
    return min(MOST * part.seconds, max(left - later, part.seconds), left)
