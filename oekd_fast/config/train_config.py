"""Config of a run: one flat, frozen dataclass for Python, the command line and config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from oekd_fast.config.data import DataConfig
from oekd_fast.config.distillation import DistillationConfig
from oekd_fast.config.model import ModelConfig
from oekd_fast.config.optimizer import OptimizerConfig
from oekd_fast.config.run import RunConfig
from oekd_fast.config.schedule import ScheduleConfig

# Fields that do not change what is trained, only where the run is, how it is computed and what it shows.
_MAY_DIFFER_ON_RESUME = frozenset(
    ("output_dir", "data_dir", "resume", "baseline", "checkpoint_every", "latency", "progress", "executor",
     "capture", "compile_blocks", "pad_channels", "data_placement", "track_test", "test_flips", "tracker",
     "tracker_project", "threads", "rank_timeout", "join_timeout", "student_ranks")
)  # fmt: skip


# Dataclasses collect fields from the last base to the first, so this order puts the data set first.
@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig, ScheduleConfig, OptimizerConfig, DistillationConfig, ModelConfig, DataConfig):
    """Config of a run: all fields of `DataConfig`, `ModelConfig`, `DistillationConfig`, `OptimizerConfig`,
    `ScheduleConfig` and `RunConfig`.

    A config is an instance of each section, so code that reads one section takes that section's type.
    Fields whose default depends on another field (the objective, the optimizer) stay None until they are set;
    `loss_weights` and `peak_rate` resolve them. ``dataclasses.replace(config, objective=...)`` therefore uses the
    weights of the new objective.

    Raises:
        ValueError: a value is outside its field's choices or bound, or contradicts another value.
        TypeError: a value has the wrong type.
    """

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Return the config that `as_dict` described.

        Unknown names are ignored and missing fields have their defaults, so that files of other versions load.

        Raises:
            ValueError, TypeError: as the constructor.
        """
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def check(self) -> None:
        super().check()
        objective, name = self.family_objective, self.objective
        untaught = objective.teacher == "optional" and self.teacher is None
        if self.num_students < 2 and (objective.from_others or objective.gated or untaught):
            more = " and no teacher" if untaught else ""
            raise ValueError(
                f"num_students: expected at least 2 with objective={name!r}{more}, got {self.num_students}"
            )
        if self.learn_from != "objective" and self.num_students < 2:
            raise ValueError(f"num_students: expected at least 2 with learn_from={self.learn_from!r}, got 1")
        if self.kd_strengths is not None and len(self.kd_strengths) != self.num_students:
            raise ValueError(
                f"kd_strengths: expected {self.num_students} numbers, one a student, got {len(self.kd_strengths)}"
            )
        for option in ("mixup", "cutmix"):
            if self.divergence == "decoupled" and getattr(self, option) is not None:
                raise ValueError(
                    f"{option}: expected none with divergence='decoupled', whose labels are single classes, got "
                    f"{getattr(self, option):g}"
                )
        if self.start_size is not None and self.teacher is not None and objective.hints:
            raise ValueError(
                f"start_size: expected none with the teacher of objective={name!r}, whose maps have the size of whole "
                f"images, got {self.start_size:g}"
            )
        if self.keep_hardest is not None and self.student_ranks > 1:
            raise ValueError(
                f"keep_hardest: expected none with student_ranks={self.student_ranks}, since the last student selects "
                f"the images, got {self.keep_hardest:g}"
            )
        if self.learn_from_average and self.ema_decay is None:
            raise ValueError("ema_decay: expected a number with learn_from_average, got None")
        if objective.alone and (self.pretrain_epochs or self.freeze_base):
            field = "pretrain_epochs" if self.pretrain_epochs else "freeze_base"
            raise ValueError(f"{field}: expected none with objective={name!r}, which trains one network")
        if self.schedule == "cyclic" and name != "snapshot":
            raise ValueError(f"schedule: expected cyclic with objective='snapshot' alone, got it with {name!r}")
        if name == "snapshot" and (self.schedule != "cyclic" or self.epochs < self.snapshots):
            raise ValueError(
                "snapshots: expected schedule='cyclic' and at most an epoch a snapshot with objective='snapshot', "
                f"got schedule={self.schedule!r}, {self.snapshots} snapshots in {self.epochs} epochs"
            )
        if name == "snapshot" and self.patience is not None:
            raise ValueError(
                f"patience: expected none with objective='snapshot', which needs all its epochs, got {self.patience}"
            )

    @property
    def run_folder(self) -> Path:
        """`output_dir`, or a folder in runs/ named after data set, model and seed if it is None."""
        model = re.sub(r"[^\w.+-]+", "_", self.model.rpartition("/")[2])  # timm:resnet18, nets/mine.py:make
        name = f"{Path(self.dataset).name}-{model}-seed{self.seed}"
        return self.output_dir if self.output_dir is not None else Path("runs") / name

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values, as in config.json; loss weights and learning rate are resolved."""
        resolved = {**asdict(self), **asdict(self.loss_weights), "learning_rate": self.peak_rate}
        return {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in resolved.items()
        }

    def training_fields(self) -> dict[str, Any]:
        """Return the part of `as_dict` that a resumed run must share with the run that it continues."""
        return {name: value for name, value in self.as_dict().items() if name not in _MAY_DIFFER_ON_RESUME}
