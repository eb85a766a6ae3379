"""Augmentation and normalisation of whole batches on their own device, without host synchronisation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast.common.part import Part
from oekd_fast.data.augmentation.resized_crop import resized_crop
from oekd_fast.data.augmentation.settings import AnyAugmentation, Augmentation, ResizedCrop


def augment(
    images: Tensor,
    augmentation: AnyAugmentation,
    generator: torch.Generator,
    part: Part | None = None,
    mirror: Tensor | None = None,
) -> Tensor:
    """Augment training images.

    Args:
        images: uint8 [B, C, H, W].
        augmentation: `Augmentation` (see `pad_crop_flip`) or `ResizedCrop` (see `resized_crop`).
        generator: random generator on the device of `images`.
        part: the rows of a larger batch that `images` are. The draws are those of the whole batch, so that each image
            is augmented as it would be there. None: `images` are the whole batch.
        mirror: whether to flip each image horizontally, bool [B] on the device; None flips at random if
            `augmentation.flip`. The other draws are the same in both cases.

    Returns:
        uint8 [B, C, S, S] with S = `augmentation.output_size(H)` for square images; `Augmentation` keeps the shape of
        all images.

    Raises:
        ValueError: `images` has another dtype or number of dimensions.
    """
    _check_images(images)
    apply = resized_crop if isinstance(augmentation, ResizedCrop) else pad_crop_flip
    return apply(images, augmentation, generator, part, mirror)


def centre(images: Tensor, augmentation: AnyAugmentation) -> Tensor:
    """Crop the centre that evaluation uses for images trained with `augmentation`.

    Args:
        images: [B, C, H, H].
        augmentation: augmentation of the training images.

    Returns:
        A view of the centre S x S pixels, [B, C, S, S] with S = `augmentation.output_size(H)`.

    Raises:
        ValueError: H is smaller than S.
    """
    stored = images.shape[-1]
    size = augmentation.output_size(stored)
    if size > stored:
        raise ValueError(f"images: expected at least {size}x{size} pixels, got {stored}x{stored}")
    first = (stored - size) // 2
    return images[..., first : first + size, first : first + size]


def pad_crop_flip(
    images: Tensor,
    augmentation: Augmentation,
    generator: torch.Generator,
    part: Part | None = None,
    mirror: Tensor | None = None,
) -> Tensor:
    """Zero-pad, crop to the original size at a random offset per image, and flip half of the images.

    Args:
        images: uint8 [B, C, H, W].
        augmentation: `pad=0, flip=False` without `mirror` returns the images themselves and draws nothing.
        generator: random generator on the device of `images`; any other call draws an integer for each image of
            the whole batch, whatever the options.
        part, mirror: see `augment`.

    Returns:
        uint8 [B, C, H, W].

    Raises:
        ValueError: `images` has another dtype or number of dimensions.
    """
    _check_images(images)
    if augmentation.pad == 0 and not augmentation.flip and mirror is None:
        return images
    part = part or Part.whole(len(images))
    top, left, drawn = (draw[part.rows] for draw in draw_crops(part.of, augmentation, generator))
    return crop(images, augmentation.pad, top, left, drawn if mirror is None else mirror)


def draw_crops(count: int, augmentation: Augmentation, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw top and left offsets into padded images (int64 [count], in 0..2 * pad) and flips (bool [count])."""
    places = 2 * augmentation.pad + 1
    code = torch.randint(2 * places * places, (count,), generator=generator, device=generator.device)
    top, left = code % places, code // places % places
    mirror = code >= places * places
    return top, left, mirror if augmentation.flip else torch.zeros_like(mirror)


def crop(images: Tensor, pad: int, top: Tensor, left: Tensor, mirror: Tensor) -> Tensor:
    """Crop and flip padded images at the offsets of `draw_crops`, as one gather over the pixels of each plane.

    Args:
        images: uint8 [B, C, H, W].
        pad: pixels of zero padding at each side.
        top, left: offsets into the padded images, int64 [B].
        mirror: whether to flip each image horizontally, bool [B].

    Returns:
        uint8 [B, C, H, W].
    """
    batch, channels, height, width = images.shape
    planes = F.pad(images, (pad, pad, pad, pad)).flatten(2)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(mirror[:, None], width - 1 - columns, columns)
    index = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
    index = index.view(batch, 1, height * width).expand(batch, channels, height * width)
    return planes.gather(2, index).view(batch, channels, height, width)


def normalise(
    images: Tensor, mean: Tensor, std: Tensor, *, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Return (images / 255 - mean) / std, computed as one multiply-add.

    Args:
        images: uint8 [B, C, H, W].
        mean, std: float32 [C] on the device of `images`, for pixels in [0, 1].
        memory_format: memory format of the result, `torch.contiguous_format` or `torch.channels_last`.

    Returns:
        float32 [B, C, H, W].

    Raises:
        ValueError: a shape or the dtype of `images` is another one.
    """
    _check_images(images)
    if mean.shape != std.shape or mean.shape != images.shape[1:2]:
        raise ValueError(
            f"mean and std: expected shape [{images.shape[1]}], one value per channel, "
            f"got {list(mean.shape)} and {list(std.shape)}"
        )
    return scale_and_shift(images, *normalising(mean, std), memory_format=memory_format)


def normalising(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift [C, 1, 1] for which `scale_and_shift` is `normalise`, for use in many calls."""
    return (1 / (255 * std)).view(-1, 1, 1), (-mean / std).view(-1, 1, 1)


def scale_and_shift(
    images: Tensor, scale: Tensor, shift: Tensor, *, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Return images * scale + shift, computed as one multiply-add; float32 [B, C, H, W] in `memory_format`.

    Args:
        images: uint8 [B, C, H, W].
        scale, shift: float32 [C, 1, 1] on the device of `images`.
        memory_format: memory format of the result.

    Raises:
        ValueError: a shape or the dtype of `images` is another one.
    """
    _check_images(images)
    if scale.shape != shift.shape or scale.shape != (images.shape[1], 1, 1):
        raise ValueError(
            f"scale and shift: expected shape [{images.shape[1]}, 1, 1], one value per channel, "
            f"got {list(scale.shape)} and {list(shift.shape)}"
        )
    out = torch.empty_like(images, dtype=torch.float32, memory_format=memory_format)
    return torch.addcmul(shift, images, scale, out=out)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(f"images: expected uint8 [B, C, H, W], got {images.dtype} {list(images.shape)}")
