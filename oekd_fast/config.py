"""One frozen dataclass: the command line, the Python API and a run's config.json."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from oekd_fast.options import KDOptions

# Fields that may differ when a run is resumed: where things are, how they are run and shown, not what is trained.
_FREE = ("output_dir", "data_dir", "resume", "baseline", "checkpoint_every", "progress", "executor", "capture",
         "compile_blocks", "data_placement")  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Train a family of students at once by online ensemble knowledge distillation."""

    dataset: str = "digits"
    """digits, a known name (cifar10, cifar100, fashion_mnist, ...), a folder, or owner/name on the hub."""
    data_dir: Path | None = None
    """Folder that holds a known data set's files; without it they come from the hub."""
    model: str = "resnet20"
    """Architecture of student 1, the pseudo teacher."""
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

    temperature: float = 2.0
    """T of the distillation term (paper: 2)."""
    ce_weight: float = 0.7
    """alpha: cross-entropy of each student."""
    feature_weight: float = 0.15
    """beta: students' adapted maps against the pseudo teacher's."""
    kd_weight: float = 0.15
    """gamma: each student against the ensemble."""
    label_smoothing: float = 0.0
    """Of the cross-entropy, in [0, 1]."""
    detach_ensemble: bool = True
    """False: gradients also flow through the ensemble target, and the step's backward is one graph."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd is SGD with Nesterov momentum."""
    learning_rate: float | None = None
    """Peak rate; default 0.1 for sgd, 0.001 for adam."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 1e-4
    """Of all parameters."""
    adapter_rate: float = 0.5
    """The adapters' learning rate as a multiple of the networks'."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    """multistep multiplies the rate by `decay` at each milestone; cosine falls to 0."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Of multistep, as shares of the training."""
    decay: float = 0.1
    """Of multistep."""
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

    checkpoint_every: int = 1
    """Epochs between checkpoints; the last epoch always has one."""
    progress: bool = True
    """Show a progress bar (on a terminal) or a line every so many epochs (elsewhere)."""

    def __post_init__(self) -> None:
        for name in ("num_students", "epochs", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        if self.train_images is not None and self.train_images < 1:
            raise ValueError(f"train_images: expected an integer >= 1, got {self.train_images}")
        if self.seed < 0:
            raise ValueError(f"seed: expected an integer >= 0, got {self.seed}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction: expected a number in (0, 1), got {self.validation_fraction}")
        for name in ("feature_weight", "weight_decay", "momentum", "adapter_rate", "decay", "warmup_epochs"):
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
        choices = {"precision": ("fp32", "bf16", "fp16"), "optimizer": ("sgd", "adam"),
                   "schedule": ("multistep", "cosine"), "executor": ("auto", "parallel", "sequential"),
                   "data_placement": ("auto", "device", "host", "stream"),
                   "augmentation": ("auto", "none", "crop", "resized_crop"),
                   "normalisation": ("computed", "published")}  # fmt: skip
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}: expected one of {', '.join(values)}, got {getattr(self, name)!r}")
        if not self.augment and self.augmentation not in ("auto", "none"):
            raise ValueError(f"augmentation: expected auto or none with augment=False, got {self.augmentation!r}")
        if self.pad is not None and self.augmentation == "resized_crop":
            raise ValueError(
                f"pad: expected none with augmentation='resized_crop', which has no padding, got {self.pad}"
            )
        self.family_loss()

    def family_loss(self) -> KDOptions:
        """The paper's loss on the logits of the whole family."""
        return KDOptions(
            self.temperature, self.ce_weight, self.kd_weight, self.detach_ensemble, label_smoothing=self.label_smoothing
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
        return self.learning_rate or {"sgd": 0.1, "adam": 0.001}[self.optimizer]

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
