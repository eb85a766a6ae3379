"""Options of augmentation, and the sizes of stored images and of the network's input that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

AugmentationChoice = Literal["auto", "none", "crop", "resized_crop"]

# Evaluation takes the centre 224 of 256 stored pixels, and the same share at other sizes (He et al. 2016, section 3.4).
STORED_PIXELS, INPUT_PIXELS = 256, 224


@dataclass(frozen=True)
class Augmentation:
    """Zero-pad by `pad` pixels, crop at random to the original size, and flip half of the images if `flip`.

    With `alternate`, the flips of an image alternate from epoch to epoch; see `AlternatingFlips`.
    """

    pad: int
    flip: bool
    alternate: bool = False

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ValueError(f"pad: expected pixels >= 0, got {self.pad}")
        _check_alternate(self.alternate, self.flip)

    def output_size(self, stored: int) -> int:
        """Return the height and width of the network's input, given those of the stored images, in pixels."""
        return stored


@dataclass(frozen=True)
class ResizedCrop:
    """Crop a random box, resize it to `size` x `size` pixels, and flip half of the images if `flip`.

    The area of the box is a share of the image drawn uniformly from `scale`; its width divided by its height is drawn
    from `ratio`, uniformly in the logarithm (Szegedy et al. 2015, section 6). Evaluation takes the centre `size` x
    `size` pixels of the stored image. `alternate` is that of `Augmentation`.
    """

    size: int
    flip: bool
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    alternate: bool = False

    def __post_init__(self) -> None:
        _check_alternate(self.alternate, self.flip)
        if self.size < 1:
            raise ValueError(f"size: expected pixels >= 1, got {self.size}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: expected two shares of the area in (0, 1], the smaller first, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio: expected two numbers > 0, the smaller first, got {self.ratio}")

    def output_size(self, stored: int) -> int:
        """Return `size`, whatever the size of the stored images."""
        return self.size


AnyAugmentation = Augmentation | ResizedCrop


@dataclass(frozen=True)
class Mixing:
    """Mix pairs of training images and their labels, in a ratio lambda drawn for each batch from Beta(alpha, alpha).

    With both fields set, each batch has either, with equal probability, as in timm.

    Args:
        mixup: alpha of mixup, which adds up lambda times an image and 1 - lambda times another (Zhang et al. 2018,
            arXiv 1710.09412); None for none.
        cutmix: alpha of CutMix, which replaces a box of 1 - lambda of an image by that of another (Yun et al. 2019,
            arXiv 1905.04899); None for none. Labels are mixed by the area of the box inside the image.
    """

    mixup: float | None = None
    cutmix: float | None = None

    def __post_init__(self) -> None:
        if self.mixup is None and self.cutmix is None:
            raise ValueError("mixup: expected a number > 0 for mixup or cutmix, got None for both")
        for name, alpha in vars(self).items():
            if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
                raise ValueError(f"{name}: expected a finite number > 0, got {alpha}")


@dataclass(frozen=True)
class ImageSettings:
    """Augmentation and image sizes, resolved from the user's choice and the facts known before images are read.

    Args:
        kind: kind of augmentation.
        image_size: height and width of the network's input in pixels; None keeps those of the images.
        known: augmentation of the known data set; None for other data.
    """

    kind: Literal["none", "crop", "resized_crop"]
    image_size: int | None
    known: AnyAugmentation | None

    @classmethod
    def choose(cls, choice: AugmentationChoice, image_size: int | None, known: AnyAugmentation | None) -> ImageSettings:
        """Resolve "auto" and a missing `image_size` from the known augmentation; the default is a crop.

        Raises:
            ValueError: `choice` is unknown, or `image_size` is below 1.
        """
        if choice not in get_args(AugmentationChoice):
            raise ValueError(f"augmentation: expected one of {', '.join(get_args(AugmentationChoice))}, got {choice!r}")
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size: expected pixels >= 1, got {image_size}")
        large = isinstance(known, ResizedCrop)
        if large and image_size is None:
            image_size = known.size
        if choice == "auto":
            choice = "resized_crop" if large else "crop"
        return cls(choice, image_size, known)

    @property
    def stored_size(self) -> int | None:
        """Height and width of stored images in pixels, larger than the input for resized crops; None keeps theirs."""
        if self.image_size is None or self.kind != "resized_crop":
            return self.image_size
        return round(self.image_size * STORED_PIXELS / INPUT_PIXELS)

    def augmentation(self, stored: int) -> AnyAugmentation:
        """Return the augmentation of images that are stored with `stored` x `stored` pixels.

        Images of unknown data are never flipped, since flipping would silently make labels of digits or signs wrong.
        """
        if self.kind == "none":
            return Augmentation(pad=0, flip=False)
        flip = self.known is not None and self.known.flip
        if self.kind == "resized_crop":
            return ResizedCrop(self.image_size or stored, flip)
        if self.image_size is None and isinstance(self.known, Augmentation):
            return self.known
        return Augmentation(max(1, stored // 8), flip)


def _check_alternate(alternate: bool, flip: bool) -> None:
    if alternate and not flip:
        raise ValueError("alternate: expected False with flip=False, got True")
