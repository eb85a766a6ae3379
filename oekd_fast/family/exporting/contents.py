"""What an exported network takes and returns, and the texts that its file holds about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oekd_fast import __version__
from oekd_fast.family.metadata import Normalisation, StudentMetadata

INPUT = "images"


@dataclass(frozen=True)
class ImageInput:
    """The images that an exported network takes.

    Args:
        shape: (C, H, W) of an image.
        batch: number of images of each call; None for any number.
        normalisation: statistics with which the network normalises uint8 images itself; None if it takes float32
            images that are normalised already.

    Raises:
        ValueError: `shape` is not three numbers >= 1, `batch` is below 1, or `normalisation` has another number of
            channels than `shape`.
    """

    shape: tuple[int, int, int]
    batch: int | None = None
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        shape = self.shape
        if not isinstance(shape, tuple) or len(shape) != 3 or not all(type(n) is int and n >= 1 for n in shape):
            raise ValueError(f"image_shape: expected (C, H, W) with three integers >= 1, got {shape!r}")
        if self.batch is not None and (type(self.batch) is not int or self.batch < 1):
            raise ValueError(f"batch: expected an integer >= 1, or None for any number of images, got {self.batch!r}")
        if self.normalisation is not None:
            for name in ("mean", "std"):
                values = getattr(self.normalisation, name)
                if len(values) != shape[0] or not all(math.isfinite(value) for value in values):
                    raise ValueError(
                        f"normalisation.{name}: expected {shape[0]} finite numbers, one per channel, got {values!r}"
                    )

    @property
    def dtype(self) -> torch.dtype:
        """torch.uint8 if the network normalises the images itself, else torch.float32."""
        return torch.float32 if self.normalisation is None else torch.uint8

    def example(self, count: int, seed: int) -> Tensor:
        """Return `count` random images on the CPU, without drawing from the random state of the process."""
        generator = torch.Generator("cpu").manual_seed(seed)
        size = (count, *self.shape)
        if self.dtype == torch.uint8:
            return torch.randint(256, size, dtype=torch.uint8, generator=generator, device="cpu")
        return torch.randn(size, dtype=torch.float32, generator=generator, device="cpu")


def description(
    images: ImageInput,
    *,
    classes: tuple[str, ...] | None = None,
    metadata: StudentMetadata | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what the file says about a network: values that JSON can hold, by name.

    Args:
        images: input of the network.
        classes: name of each class, in the order of the logits.
        metadata: metadata of a student; replaces `classes`.
        more: further entries.
    """
    shape = ", ".join(map(str, (images.batch or "batch", *images.shape)))
    entries: dict[str, Any] = {
        "oekd_fast_version": __version__,
        "input": f"{str(images.dtype).removeprefix('torch.')} [{shape}]",
        "preprocessing": "included" if images.normalisation is not None else "none",
    }
    if metadata is not None:
        classes = metadata.classes
        entries |= {
            "model": metadata.model,
            "student": metadata.index,
            "num_students": metadata.num_students,
            "parameters": metadata.parameters,
            "image_size": metadata.image_size,
            "accuracy": metadata.accuracy,
            "mean": list(metadata.normalisation.mean),
            "std": list(metadata.normalisation.std),
        }
    elif images.normalisation is not None:
        entries |= {"mean": list(images.normalisation.mean), "std": list(images.normalisation.std)}
    if classes is not None:
        entries["classes"] = list(classes)
    return entries | dict(more or {})
