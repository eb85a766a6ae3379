"""Augmentation and normalisation of a whole batch on its own device, without host synchronisation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast.data.augmentation.resized_crop import resized_crop
from oekd_fast.data.augmentation.settings import AnyAugmentation, Augmentation, ResizedCrop


def augment(images: Tensor, augmentation: AnyAugmentation, generator: torch.Generator) -> Tensor:
    """What `augmentation` does to training images.

    Args:
        images: uint8 [B, C, H, W].
        augmentation: `Augmentation` (see `pad_crop_flip`) or `ResizedCrop` (see `resized_crop`).
        generator: on the device of `images`.

    Returns:
        uint8 [B, C, S, S], where S is `augmentation.output_size(H)` for square images.
    """
    _check_images(images)
    apply = resized_crop if isinstance(augmentation, ResizedCrop) else pad_crop_flip
    return apply(images, augmentation, generator)


def centre(images: Tensor, augmentation: AnyAugmentation) -> Tensor:
    """What evaluation sees of square images that training sees through `augmentation`.

    Args:
        images: uint8 [B, C, H, H].
        augmentation: of the training images.

    Returns:
        The middle S x S pixels, S = `augmentation.output_size(H)`, as a view: uint8 [B, C, S, S].
    """
    stored = images.shape[-1]
    size = augmentation.output_size(stored)
    if size > stored:
        raise ValueError(f"images must be {size} pixels or more a side to give {size} x {size}, got {stored}")
    first = (stored - size) // 2
    return images[..., first : first + size, first : first + size]


def pad_crop_flip(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Zero-pad, crop to the original size at an offset of its own for each image, mirror half of them.

    Args:
        images: uint8 [B, C, H, W].
        augmentation: with `pad=0, flip=False` the images are returned as they are and nothing is drawn.
        generator: on the device of `images`; gives one draw of B integers a call, whatever the settings.

    Returns:
        uint8 [B, C, H, W].
    """
    _check_images(images)
    if augmentation.pad == 0 and not augmentation.flip:
        return images
    top, left, mirror = draw(len(images), augmentation, generator)
    return crop(images, augmentation.pad, top, left, mirror)


def draw(count: int, augmentation: Augmentation, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Crop offsets into the padded image (int64 [B], 0 to 2 * pad) and whether to mirror (bool [B])."""
    places = 2 * augmentation.pad + 1
    code = torch.randint(2 * places * places, (count,), generator=generator, device=generator.device)
    top, left = code % places, code // places % places
    mirror = code >= places * places
    return top, left, mirror if augmentation.flip else torch.zeros_like(mirror)


def crop(images: Tensor, pad: int, top: Tensor, left: Tensor, mirror: Tensor) -> Tensor:
    """The windows of the padded images that `draw` chose, as one gather over the pixels of each plane."""
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
    """(images / 255 - mean) / std as one multiply-add.

    Args:
        images: uint8 [B, C, H, W].
        mean, std: float32 [C] on the device of `images`, for pixels in [0, 1].
        memory_format: of the result, `torch.contiguous_format` or `torch.channels_last`.

    Returns:
        float32 [B, C, H, W].
    """
    _check_images(images)
    if mean.shape != std.shape or mean.shape != images.shape[1:2]:
        raise ValueError(
            f"mean and std must be [{images.shape[1]}], one value a channel, "
            f"got {list(mean.shape)} and {list(std.shape)}"
        )
    scale = (1 / (255 * std)).view(-1, 1, 1)
    shift = (-mean / std).view(-1, 1, 1)
    out = torch.empty_like(images, dtype=torch.float32, memory_format=memory_format)
    return torch.addcmul(shift, images, scale, out=out)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(f"images must be uint8 [B, C, H, W], got {images.dtype} {list(images.shape)}")
