import pytest
import torch

from oekd_fast.data import Augmentation, normalise, pad_crop_flip, scale_and_shift
from oekd_fast.data.augmentation.transforms import crop, draw_crops

ON_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=ON_GPU),
]


def pictures(*shape: int, low: int = 0) -> torch.Tensor:
    return torch.randint(low, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def crop_one(image: torch.Tensor, pad: int, top: int, left: int, mirror: bool) -> torch.Tensor:
    """Reference: one image, one pixel at a time."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            row = y + top - pad
            column = (width - 1 - x if mirror else x) + left - pad
            if 0 <= row < height and 0 <= column < width:
                out[:, y, x] = image[:, row, column]
    return out


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("shape", [(5, 3, 6, 6), (4, 1, 5, 7), (1, 2, 3, 1), (0, 3, 4, 4)])
def test_equals_a_loop_over_images(shape, pad, flip):
    images, augmentation = pictures(*shape), Augmentation(pad, flip)
    top, left, mirror = draw_crops(shape[0], augmentation, torch.Generator().manual_seed(1))
    expected = [crop_one(image, pad, int(top[i]), int(left[i]), bool(mirror[i])) for i, image in enumerate(images)]
    got = pad_crop_flip(images, augmentation, torch.Generator().manual_seed(1))
    assert got.dtype == torch.uint8 and got.shape == images.shape
    assert torch.equal(got, torch.stack(expected) if expected else images)


def test_channels_last_images_give_the_same_result():
    images = pictures(4, 3, 6, 6)
    settings = (Augmentation(2, True), torch.Generator().manual_seed(1))
    other = (Augmentation(2, True), torch.Generator().manual_seed(1))
    last = images.to(memory_format=torch.channels_last)
    assert torch.equal(pad_crop_flip(images, *settings), pad_crop_flip(last, *other))


def test_offsets_and_flips_are_drawn_uniformly():
    count, places = 90_000, 3
    top, left, mirror = draw_crops(count, Augmentation(pad=1, flip=True), torch.Generator().manual_seed(0))
    cells = (top * places + left) * 2 + mirror
    counts = cells.bincount(minlength=18).double()
    assert len(counts) == 18
    # Within five standard deviations of a binomial count.
    assert (counts - count / 18).abs().max() < 5 * (count / 18) ** 0.5


def test_no_image_is_flipped_without_flip():
    _, _, mirror = draw_crops(1000, Augmentation(pad=2, flip=False), torch.Generator())
    assert not mirror.any()


def test_without_pad_and_flip_the_images_are_returned_and_nothing_is_drawn():
    images, generator = pictures(2, 3, 4, 4), torch.Generator()
    before = generator.get_state()
    assert pad_crop_flip(images, Augmentation(0, False), generator) is images
    assert torch.equal(before, generator.get_state())


def test_pixels_outside_the_image_are_zero():
    images = pictures(1, 1, 4, 4, low=1)
    corner, yes = torch.tensor([0]), torch.tensor([True])
    out = crop(images, 2, corner, corner, ~yes)
    assert (out[..., :2, :] == 0).all() and (out[..., :2] == 0).all()
    assert torch.equal(out[..., 2:, 2:], images[..., :2, :2])
    out = crop(images, 2, corner, corner, yes)
    assert torch.equal(out[..., 2:, :2], images[..., :2, :2].flip(-1))


def test_the_result_depends_on_the_generator_state_only():
    images, augmentation, generator = pictures(16, 3, 8, 8), Augmentation(2, True), torch.Generator()
    generator.manual_seed(5)
    first = pad_crop_flip(images, augmentation, generator)
    state = generator.get_state()
    second = pad_crop_flip(images, augmentation, generator)
    assert not torch.equal(first, second)
    assert torch.equal(second, pad_crop_flip(images, augmentation, torch.Generator().set_state(state)))


def test_the_number_of_draws_does_not_depend_on_the_options():
    images, states = pictures(16, 3, 8, 8), []
    for augmentation in (Augmentation(0, True), Augmentation(3, False), Augmentation(3, True)):
        generator = torch.Generator().manual_seed(0)
        pad_crop_flip(images, augmentation, generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalise_equals_fp64(device, memory_format):
    images = pictures(4, 3, 5, 6).to(device)
    mean, std = torch.tensor([0.5, 0.4, 0.3], device=device), torch.tensor([0.2, 0.3, 1 / 255], device=device)
    got = normalise(images, mean, std, memory_format=memory_format)
    expected = (images.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
    assert got.dtype == torch.float32 and got.is_contiguous(memory_format=memory_format)
    # The terms of the multiply-add reach 255 and are each rounded to float32 once.
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=255 * 2**-22)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_no_synchronisation_with_the_host():
    images = pictures(8, 3, 8, 8).cuda()
    mean, std = torch.full((3,), 0.5, device="cuda"), torch.full((3,), 0.2, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        normalise(pad_crop_flip(images, Augmentation(2, True), generator), mean, std)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_images_of_another_dtype_or_shape_are_rejected(images):
    with pytest.raises(ValueError, match=r"images: expected uint8 \[B, C, H, W\], got"):
        pad_crop_flip(images, Augmentation(1, True), torch.Generator())
    with pytest.raises(ValueError, match=r"images: expected uint8 \[B, C, H, W\], got"):
        normalise(images, torch.zeros(3), torch.ones(3))


def test_normalise_rejects_statistics_of_another_shape():
    with pytest.raises(ValueError, match=r"mean and std: expected shape \[3\], .* got \[1\] and \[3\]"):
        normalise(pictures(2, 3, 4, 4), torch.zeros(1), torch.ones(3))


def test_scale_and_shift_of_another_shape_are_rejected():
    with pytest.raises(ValueError, match=r"scale and shift: expected shape \[3, 1, 1\], .* got \[1, 1, 1\] and"):
        scale_and_shift(pictures(2, 3, 4, 4), torch.zeros(1, 1, 1), torch.ones(3, 1, 1))
