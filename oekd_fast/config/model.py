"""Section of the config: the architecture, the number of students and their initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oekd_fast.config.section import Section, between, setting


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """Architecture, number of students and initial weights."""

    model: str = "resnet20"
    """Architecture of student 1, the largest one (the pseudo teacher)."""
    num_students: int = setting(5, between(1, 1000))
    """Number N of students; student j of 1..N has (N - j + 1) / N of the channels."""
    initial_weights: Path | None = setting(None, unset="random")
    """File with published weights (torchvision or timm) that the base and student 1 start from."""
    freeze_base: bool = False
    """Keep the shared base at its initial weights and statistics."""
