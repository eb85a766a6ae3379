"""One frozen dataclass: the command line, the Python API and a run's config.json."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from oekd_fast.config.objectives import OBJECTIVES, Objective, ObjectiveName, others
from oekd_fast.losses.calls import KDOptions

Ramp = Literal["constant", "linear", "cosine", "sigmoid"]
# Fields whose default is the objective's.
OBJECTIVES_OWN = ("temperature", "ce_weight", "kd_weight", "feature_weight", "ensemble_ce_weight")

# Fields that may differ when a run is resumed: where things are, how they are run and shown, not what is trained.
_FREE = ("output_dir", "data_dir", "resume", "baseline", "checkpoint_every", "progress", "executor", "capture",
         "compile_blocks", "data_placement", "track_test")  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Train a family of students at once by online ensemble knowledge distillation."""

    dataset: str = "digits"
    """digits, a known name (cifar10, cifar100, fashion_mnist, ...), a folder, or owner/name on the hub."""
    data_dir: Path | None = None
    """Folder that holds a known data set's files; without it they come from the hub."""
    model: str = "resnet20"
    """Architecture of student 1, the pseudo teacher."""
    initial_weights: Path | None = None
    """Student 1 and the base that all share start from these, in baselines too: a file with the model's published
    weights, as torchvision or timm name them (ImageNet forms); of other classes all but the last layer."""
    num_students: int = 5
    """N; student j = 1..N keeps (N - j + 1) / N of the channels."""
    epochs: int = 40
    """Passes over the training split."""
    batch_size: int = 128
    """Images a step; the rest of an epoch that fills no batch is left out."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the networks under autocast; the loss is fp32 always. fp16 scales the loss."""
    executor: Literal["auto", "parallel", "sequential"] = "auto"
    """The students side by side (CUDA streams, CPU threads) or one after the other; auto: side by side where built."""
    capture: bool = True
    """On CUDA the whole step as one CUDA graph, replayed; where that cannot be, and on a CPU, step by step."""
    deterministic: bool = False
    """The same bits from either executor: on a CPU one thread a student, on CUDA cuDNN's deterministic algorithms."""
    compile_blocks: bool = False
    """torch.compile the networks' blocks, once for each shape of block."""
    seed: int = 0
    """Of the validation split, initial weights, data order and augmentation."""
    output_dir: Path | None = None
    """The run folder; default runs/<dataset>-<model>-seed<seed>."""
    baseline: bool = False
    """Also train each student alone, cross-entropy only, under the same schedule."""
    resume: bool = False
    """Continue the run in output_dir from its newest checkpoint; start it if there is none."""

    objective: ObjectiveName = "oekd"
    """What students learn beside the labels; oekd is the paper's. From Python, note that
    dataclasses.replace(config, objective=...) keeps the temperature and weights that were filled in for the old one."""
    teacher: Path | None = None
    """A saved student (students/student_<j>) as the teacher of kd, and if given of fitnets."""
    codistillation_delay: int = 0
    """Steps between copies of all students, from whom codistillation takes predictions; 0: the students as they are."""
    snapshots: int = 5
    """Cycles of the learning rate of snapshot, each of which leaves one."""
    generations: int = 3
    """Of born_again, the first of which learns from labels alone."""
    temperature: float | None = None
    """T of the distillation term; default: the objective's (paper: 2)."""
    ce_weight: float | None = None
    """alpha: cross-entropy of each student; default: the objective's (paper: 0.7)."""
    feature_weight: float | None = None
    """beta: students' adapted maps against the teacher's; default: the objective's (paper: 0.15)."""
    kd_weight: float | None = None
    """gamma: each student against its target; default: the objective's (paper: 0.15)."""
    ensemble_ce_weight: float | None = None
    """Cross-entropy of the ensemble itself; default: the objective's (paper: none, one: 1)."""
    temperature_schedule: Ramp = "constant"
    """From `temperature_start` to `temperature` over `ramp_epochs`: constant, linear, cosine or sigmoid."""
    temperature_start: float = 1.0
    """T of the first step where it is scheduled."""
    ce_schedule: Ramp = "constant"
    """From 0 to `ce_weight` over `ramp_epochs`; what learns from labels alone (baselines, pre-training, the first
    generation) has its weight at once."""
    kd_schedule: Ramp = "constant"
    """From 0 to `kd_weight` over `ramp_epochs`; sigmoid is the ramp-up of ONE, exp(-5 (1 - t)^2)."""
    feature_schedule: Ramp = "constant"
    """From 0 to `feature_weight` over `ramp_epochs`."""
    ramp_epochs: float = 80.0
    """Of these four schedules."""
    pretrain_epochs: int = 0
    """The base and the pseudo teacher learn alone for so many epochs before the family starts from them."""
    freeze_base: bool = False
    """The shared base keeps the weights it starts with, its statistics too."""
    base_gradients: Literal["all", "pseudo_teacher"] = "all"
    """Whose losses train the shared base."""
    label_smoothing: float = 0.0
    """Of the cross-entropy, in [0, 1]."""
    detach_ensemble: bool = True
    """False: gradients also flow through the ensemble target, and the step's backward is one graph."""

    optimizer: Literal["sgd", "adam", "rmsprop"] = "sgd"
    """sgd is SGD with Nesterov momentum."""
    learning_rate: float | None = None
    """Peak rate; default 0.1 for sgd, 0.001 for adam, 0.256 for rmsprop."""
    momentum: float = 0.9
    """Of sgd and rmsprop."""
    weight_decay: float = 1e-4
    """Of all parameters."""
    adapter_rate: float = 0.5
    """The adapters' learning rate as a multiple of the networks'."""
    schedule: Literal["multistep", "cosine", "cyclic", "exponential"] = "multistep"
    """multistep multiplies the rate by `decay` at each milestone; cosine falls to 0, cyclic does so once a snapshot;
    exponential multiplies it by `decay` every `decay_epochs`."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Of multistep, as shares of the training."""
    decay: float = 0.1
    """Of multistep and exponential."""
    decay_epochs: float = 3.0
    """Of exponential."""
    warmup_epochs: float = 1.0
    """The rate rises linearly from 0 over these; 0 for none."""
    clip_norm: float | None = None
    """Gradients of a step are scaled down to this norm, over all parameters together."""
    ema_decay: float | None = None
    """Evaluate and keep an exponential moving average of the weights, with this decay a step (less in the first)."""

    augment: bool = True
    """False: no augmentation."""
    augmentation: Literal["auto", "none", "crop", "resized_crop"] = "auto"
    """Of whole batches: crop pads, crops and flips; resized_crop takes parts of random size, and flips (evaluation sees
    the centre); auto: resized_crop for known data sets whose images differ in size, crop for all other."""
    image_size: int | None = None
    """Pixels a side that the networks see; images are made so. Default: 224 for known data sets whose images differ in
    size, otherwise the images' own."""
    pad: int | None = None
    """Pixels, of crop; default: what suits the data set."""
    flip: bool | None = None
    """Mirror half of the images; default: what suits the data set."""
    normalisation: Literal["computed", "published"] = "computed"
    """Mean and deviation a channel: of the training images at hand, or what others use for a known data set."""
    skip_corrupt: bool = False
    """Leave out images that cannot be decoded and say how many; False: the first one ends the run."""
    train_images: int | None = None
    """Train on this many images, the same for every seed: drawn once, as many of each class as its share of all. The
    validation images are held out of these; default: all."""
    validation_fraction: float = 0.1
    """Of the training images, held out to choose the epoch, where the data set has no validation split."""
    channels_last: bool = True
    """Memory format of images and weights."""
    data_placement: Literal["auto", "device", "host", "stream"] = "auto"
    """Images on the device, prefetched from host memory, or read from disk as needed (which has to be asked for);
    auto: on the device if half of its free memory holds them, else prefetched."""

    track_test: bool = False
    """Look at the test images after each epoch too, for the paper's way of choosing one; never used to select."""
    checkpoint_every: int = 1
    """Epochs between checkpoints; the last epoch always has one."""
    progress: bool = True
    """Show a progress bar (on a terminal) or a line every so many epochs (elsewhere)."""

    def __post_init__(self) -> None:
        self._check_choices()
        for name in OBJECTIVES_OWN:
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(self.family_objective, name))
        for name in ("num_students", "epochs", "batch_size", "checkpoint_every", "snapshots", "generations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        for name in ("codistillation_delay", "pretrain_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected an integer >= 0, got {getattr(self, name)}")
        if self.train_images is not None and self.train_images < 1:
            raise ValueError(f"train_images: expected an integer >= 1, got {self.train_images}")
        if self.seed < 0:
            raise ValueError(f"seed: expected an integer >= 0, got {self.seed}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction: expected a number in (0, 1), got {self.validation_fraction}")
        for name in ("feature_weight", "weight_decay", "momentum", "adapter_rate", "decay", "warmup_epochs",
                     "decay_epochs", "ramp_epochs"):  # fmt: skip
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}: expected a finite number >= 0, got {getattr(self, name)}")
        if self.learning_rate is not None and not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate: expected a finite number > 0, got {self.learning_rate}")
        if not all(0 < share < 1 for share in self.milestones):
            raise ValueError(f"milestones: expected shares of the training in (0, 1), got {self.milestones}")
        if self.clip_norm is not None and not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ValueError(f"clip_norm: expected a finite number > 0, got {self.clip_norm}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected a number in [0, 1), got {self.ema_decay}")
        if self.pad is not None and self.pad < 0:
            raise ValueError(f"pad: expected pixels >= 0, got {self.pad}")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size: expected pixels >= 1, got {self.image_size}")
        if not self.augment and self.augmentation not in ("auto", "none"):
            raise ValueError(f"augmentation: expected auto or none with augment=False, got {self.augmentation!r}")
        if self.pad is not None and self.augmentation == "resized_crop":
            raise ValueError(
                f"pad: expected none with augmentation='resized_crop', which has no padding, got {self.pad}"
            )
        for name in ("decay_epochs", "temperature_start"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name}: expected a finite number > 0, got {getattr(self, name)}")
        self._check_objective()
        self.family_loss()

    def _check_choices(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            values, value = get_args(hints[field.name]), getattr(self, field.name)
            if get_origin(hints[field.name]) is not Literal or value in values:
                continue
            near = get_close_matches(str(value), values)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(f"{field.name}: {hint}expected one of {', '.join(values)}, got {value!r}")

    def _check_objective(self) -> None:
        objective, name = self.family_objective, self.objective
        if objective.teacher == "required" and self.teacher is None:
            raise ValueError(f"teacher: expected the path of a saved student with objective={name!r}, got None")
        if objective.teacher == "none" and self.teacher is not None:
            takers = " or ".join(key for key, other in OBJECTIVES.items() if other.teacher != "none")
            raise ValueError(f"teacher: expected none but with objective {takers}, got {self.teacher} with {name!r}")
        untaught = objective.teacher == "optional" and self.teacher is None
        if self.num_students < 2 and (objective.from_others or objective.gated or untaught):
            more = " and no teacher" if untaught else ""
            raise ValueError(
                f"num_students: expected at least 2 with objective={name!r}{more}, got {self.num_students}"
            )
        if objective.alone and (self.pretrain_epochs or self.freeze_base):
            field = "pretrain_epochs" if self.pretrain_epochs else "freeze_base"
            raise ValueError(f"{field}: expected none with objective={name!r}, which trains one network")
        if self.codistillation_delay and name != "codistillation":
            raise ValueError(
                f"codistillation_delay: expected 0 but with objective='codistillation', got {self.codistillation_delay}"
            )
        if objective.from_others and not self.detach_ensemble:
            raise ValueError(f"detach_ensemble: expected True with objective={name!r}, got False")
        if self.schedule == "cyclic" and name != "snapshot":
            raise ValueError(f"schedule: expected cyclic with objective='snapshot' alone, got it with {name!r}")
        if name == "snapshot" and (self.schedule != "cyclic" or self.epochs < self.snapshots):
            raise ValueError(
                "snapshots: expected schedule='cyclic' and at most an epoch a snapshot with objective='snapshot', "
                f"got schedule={self.schedule!r}, {self.snapshots} snapshots in {self.epochs} epochs"
            )

    @property
    def family_objective(self) -> Objective:
        return OBJECTIVES[self.objective]

    def family_loss(self) -> KDOptions:
        """The objective's loss on the logits of the whole family."""
        mixing = {}
        if self.family_objective.from_others:
            mixing = {"mixing": others(self.num_students), "mixing_space": "probabilities"}
        return KDOptions(
            self.temperature,
            self.ce_weight,
            self.kd_weight,
            self.detach_ensemble,
            label_smoothing=self.label_smoothing,
            ensemble_ce_weight=self.ensemble_ce_weight,
            **mixing,
        )

    def baseline_loss(self) -> KDOptions:
        """What a student alone learns from: plain cross-entropy."""
        return KDOptions(ce_weight=1.0, kd_weight=0.0, label_smoothing=self.label_smoothing)

    @property
    def augmentation_wish(self) -> Literal["auto", "none", "crop", "resized_crop"]:
        """`augmentation`, or none if `augment` says so."""
        return self.augmentation if self.augment else "none"

    @property
    def peak_rate(self) -> float:
        return self.learning_rate or {"sgd": 0.1, "adam": 0.001, "rmsprop": 0.256}[self.optimizer]

    @property
    def run_folder(self) -> Path:
        name = f"{Path(self.dataset).name}-{self.model}-seed{self.seed}"
        return self.output_dir if self.output_dir is not None else Path("runs") / name

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in config.json."""
        return {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def training_fields(self) -> dict[str, Any]:
        """What a resumed run must share with the run that it continues."""
        return {name: value for name, value in self.as_dict().items() if name not in _FREE}
