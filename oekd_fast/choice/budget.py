"""Budgets that a student has to keep, and by how much it misses them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real

from oekd_fast.choice.candidates import Candidate
from oekd_fast.common.quantities import bytes_text, parse_bytes, parse_count
from oekd_fast.latency.result import milliseconds


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits for a student; None does not limit.

    Args:
        max_ms: milliseconds, for the median latency of a call.
        max_parameters: number of parameters.
        max_bytes: size of the file with the weights.
        min_accuracy: accuracy on the validation images in percent, >= 0 and <= 100.

    Raises:
        ValueError: a limit is out of range, or there is none.
    """

    max_ms: float | None = None
    max_parameters: int | None = None
    max_bytes: int | None = None
    min_accuracy: float | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, field.name) is None for field in fields(self)):
            names = ", ".join(field.name for field in fields(self))
            raise ValueError(f"budget: expected at least one of {names}, got none")
        for name in ("max_ms", "max_parameters", "max_bytes"):
            value = getattr(self, name)
            if value is not None and not (_is_finite(value) and value > 0):
                raise ValueError(f"{name}: expected a number > 0, got {value!r}")
        if self.min_accuracy is not None and not (_is_finite(self.min_accuracy) and 0 <= self.min_accuracy <= 100):
            raise ValueError(f"min_accuracy: expected a percentage from 0 to 100, got {self.min_accuracy!r}")

    @classmethod
    def of(
        cls,
        max_ms: float | None,
        max_parameters: int | str | None,
        max_bytes: int | str | None,
        min_accuracy: float | None,
    ) -> Budget:
        """Return the budget of numbers, or of texts such as "100k" and "1.5MiB".

        Raises:
            ValueError: a text has another form, or as the constructor.
        """
        values = {"max_parameters": max_parameters, "max_bytes": max_bytes}
        for name, parse in (("max_parameters", parse_count), ("max_bytes", parse_bytes)):
            if isinstance(values[name], str):
                try:
                    values[name] = parse(values[name])
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
        return cls(max_ms=max_ms, min_accuracy=min_accuracy, **values)

    def excess(self, candidate: Candidate) -> dict[str, float]:
        """Return by how much `candidate` misses each limit that it does not keep, as a factor >= 1.

        The factor is infinite where the value of the candidate is unknown.
        """
        found = {}
        for name, value, limit in (
            ("max_ms", candidate.median_ms, self.max_ms),
            ("max_parameters", candidate.parameters, self.max_parameters),
            ("max_bytes", candidate.file_bytes, self.max_bytes),
        ):
            if limit is not None and (value is None or value > limit):
                found[name] = math.inf if value is None else value / limit
        if self.min_accuracy is not None and candidate.validation_accuracy < self.min_accuracy:
            accuracy = candidate.validation_accuracy
            found["min_accuracy"] = self.min_accuracy / accuracy if accuracy else math.inf
        return found

    def missed(self, candidate: Candidate) -> str:
        """Return the values of `candidate` that miss a limit, with the limits: "2.10 ms of at most 2.00"."""
        texts = {
            "max_ms": lambda: f"{milliseconds(candidate.median_ms)} ms of at most {self.max_ms:g}",
            "max_parameters": lambda: f"{candidate.parameters:,} parameters of at most {self.max_parameters:,}",
            "max_bytes": lambda: f"{bytes_text(candidate.file_bytes)} of at most {bytes_text(self.max_bytes)}",
            "min_accuracy": lambda: f"{candidate.validation_accuracy:.2f} % of at least {self.min_accuracy:g} %",
        }
        return ", ".join(
            f"{name} unknown" if factor == math.inf and name != "min_accuracy" else texts[name]()
            for name, factor in self.excess(candidate).items()
        )


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
