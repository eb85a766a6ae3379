"""Section of the config: the architecture, the number of students and their initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oekd_fast.common.width_rule import DEFAULT_STUDENTS, WidthRule
from oekd_fast.config.section import Section, at_least, between, setting


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """Architecture, number of students and initial weights.

    `num_students` is resolved when the config is made: None becomes the number of `widths`, or else 5.
    """

    model: str = "resnet20"
    """Architecture of student 1, the largest one (the pseudo teacher)."""
    num_students: int | None = setting(None, between(1, 1000), unset="5, or the number of widths")
    """Number N of students."""
    widths: tuple[float, ...] | None = setting(None, unset="(N - j + 1) / N for student j of 1..N")
    """Share of the channels that each student keeps, from 1 in descending order."""
    width_divisor: int | None = setting(None, at_least(1), unset="the model's, 1 for networks of the package")
    """Round the students' channels to multiples of this number where there are at least two."""
    initial_weights: Path | None = setting(None, unset="random")
    """File with published weights (torchvision or timm) that the base and student 1 start from."""
    freeze_base: bool = False
    """Keep the shared base at its initial weights and statistics."""

    def __post_init__(self) -> None:
        if self.num_students is None:
            shares = self.widths if isinstance(self.widths, list | tuple) else ()
            object.__setattr__(self, "num_students", len(shares) or DEFAULT_STUDENTS)
        super().__post_init__()
        if self.widths is not None:
            object.__setattr__(self, "widths", tuple(map(float, self.widths)))

    def check(self) -> None:
        super().check()
        shares = self.width_rule.shares
        if shares is not None and len(shares) != self.num_students:
            raise ValueError(
                f"num_students: expected {len(shares)}, one student for each share of widths, got {self.num_students}"
            )

    @property
    def width_rule(self) -> WidthRule:
        """Shares and divisor of the students' channels, for a model that has none of its own."""
        return WidthRule(self.widths, 1 if self.width_divisor is None else self.width_divisor)
