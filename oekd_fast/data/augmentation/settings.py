"""What training images go through, and the sizes that go with it: how they are stored and what a network sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Wish = Literal["auto", "none", "crop", "resized_crop"]

# Evaluation sees the centre 224 of 256 pixels, of whatever size (He et al. 2016, section 3.4, and most since).
STORED, SEEN = 256, 224


@dataclass(frozen=True)
class Augmentation:
    """Zero-pad by `pad` pixels, crop at random to the original size, mirror half of the images if `flip`."""

    pad: int
    flip: bool

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ValueError(f"pad must be 0 or more pixels, got {self.pad}")

    def output_size(self, stored: int) -> int:
        """Height and width of what a network sees of images of `stored` pixels a side."""
        return stored


@dataclass(frozen=True)
class ResizedCrop:
    """A random part of each image resized to `size` pixels a side, half of them mirrored if `flip`.

    The part has a share of the area in `scale`, evenly, and a width to height in `ratio`, evenly in its logarithm
    (Szegedy et al. 2015, section 6). Evaluation sees the centre `size` pixels of the stored image.
    """

    size: int
    flip: bool
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be 1 or more pixels, got {self.size}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two shares of the area in (0, 1], the smaller first, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two numbers above 0, the smaller first, got {self.ratio}")

    def output_size(self, stored: int) -> int:
        """`size`, of whatever is stored."""
        return self.size


AnyAugmentation = Augmentation | ResizedCrop


@dataclass(frozen=True)
class Protocol:
    """What is asked for, settled with what is known of the data before its images are read.

    kind: of augmentation.
    image_size: of what a network sees; None: the images' own.
    known: the augmentation that suits the data, None if nothing is known.
    """

    kind: Literal["none", "crop", "resized_crop"]
    image_size: int | None
    known: AnyAugmentation | None

    @classmethod
    def choose(cls, wish: Wish, image_size: int | None, known: AnyAugmentation | None) -> Protocol:
        """`wish` and `image_size` where they say something, otherwise what `known` says: the crop of small images.

        Raises:
            ValueError: there is no such wish or size.
        """
        if wish not in get_args(Wish):
            raise ValueError(f"augmentation: expected one of {', '.join(get_args(Wish))}, got {wish!r}")
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size: expected pixels >= 1, got {image_size}")
        large = isinstance(known, ResizedCrop)
        if large and image_size is None:
            image_size = known.size
        if wish == "auto":
            wish = "resized_crop" if large else "crop"
        return cls(wish, image_size, known)

    @property
    def stored_size(self) -> int | None:
        """Of the images that are kept, more than a network sees for crops to come from; None: their own."""
        if self.image_size is None or self.kind != "resized_crop":
            return self.image_size
        return round(self.image_size * STORED / SEEN)

    def augmentation(self, stored: int) -> AnyAugmentation:
        """For images that are stored with `stored` pixels a side.

        Of unknown data none is mirrored, which would silently change the label of digits or signs.
        """
        if self.kind == "none":
            return Augmentation(pad=0, flip=False)
        flip = self.known is not None and self.known.flip
        if self.kind == "resized_crop":
            return ResizedCrop(self.image_size or stored, flip)
        if self.image_size is None and isinstance(self.known, Augmentation):
            return self.known
        return Augmentation(max(1, stored // 8), flip)
