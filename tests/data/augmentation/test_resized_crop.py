import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from oekd_fast.data import Augmentation, ResizedCrop, augment, centre
from oekd_fast.data.augmentation.resized_crop import Boxes, draw_boxes, resample

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def pictures(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def generator(seed: int = 1, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def interpolated(images: torch.Tensor, boxes: Boxes, mirror: torch.Tensor, size: int) -> torch.Tensor:
    """Reference: resize one box at a time with `F.interpolate` in fp64."""
    parts = []
    for image, top, left, height, width, flipped in zip(images, *(box.tolist() for box in boxes), mirror, strict=True):
        part = image[:, top : top + height, left : left + width].double()
        part = F.interpolate(part[None], (size, size), mode="bilinear", align_corners=False)[0]
        parts.append(part.flip(-1) if flipped else part)
    return torch.stack(parts)


@pytest.mark.parametrize("size", [1, 5, 8, 11, 32])
@pytest.mark.parametrize("shape", [(40, 3, 16, 16), (40, 1, 9, 9), (10, 3, 12, 20)])
def test_equals_interpolating_each_box(shape, size):
    images, augmentation = pictures(*shape), ResizedCrop(size, flip=True)
    boxes, mirror = draw_boxes(shape[0], *shape[2:], augmentation, generator())
    got = augment(images, augmentation, generator())
    assert got.dtype == torch.uint8 and got.shape == (*shape[:2], size, size)
    # Rounding adds 0.5; float32 positions change a value by less than 0.01.
    error = (got.double() - interpolated(images, boxes, mirror, size)).abs()
    assert error.max() < 0.51


@pytest.mark.parametrize("side", [1, 3, 64, 224, 256])
def test_a_box_of_the_whole_image_at_its_own_size_is_the_image(side):
    images = pictures(2, 3, side, side)
    zero, whole = torch.zeros(2, dtype=torch.int64), torch.full((2,), side)
    got = resample(images, Boxes(zero, zero, whole, whole), torch.tensor([False, True]), side)
    assert torch.equal(got[0], images[0]) and torch.equal(got[1], images[1].flip(-1))


def test_pixels_outside_the_box_have_no_influence():
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[..., 2:5, 3:7] = 200
    box = Boxes(*(torch.tensor([value]) for value in (2, 3, 3, 4)))
    assert (resample(images, box, torch.tensor([False]), 32) == 200).all()


def test_the_result_depends_on_the_generator_state_only():
    images, augmentation, random = pictures(16, 3, 8, 8), ResizedCrop(6, flip=True), generator()
    first = augment(images, augmentation, random)
    second = augment(images, augmentation, random)
    assert not torch.equal(first, second)
    assert torch.equal(first, augment(images, augmentation, generator()))


def test_boxes_are_inside_the_image_and_within_scale_and_ratio():
    augmentation, (height, width) = ResizedCrop(224, flip=True, scale=(0.2, 0.7)), (256, 192)
    boxes, _ = draw_boxes(20_000, height, width, augmentation, generator())
    assert all(box.dtype == torch.int64 for box in boxes)
    assert (boxes.top >= 0).all() and (boxes.top + boxes.height <= height).all()
    assert (boxes.left >= 0).all() and (boxes.left + boxes.width <= width).all()
    # The tolerance of 2 % covers rounding by half a pixel at each side of boxes of 90 pixels or more.
    share = boxes.height.double() * boxes.width / (height * width)
    assert 0.2 * 0.98 < share.min() < 0.21 and 0.69 < share.max() < 0.7 * 1.02
    ratio = boxes.width.double() / boxes.height
    assert 0.75 * 0.98 < ratio.min() < 0.76 and 1.32 < ratio.max() < 4 / 3 * 1.02
    assert (boxes.top == 0).any() and (boxes.top + boxes.height == height).any()


def sequential_box(random: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int, bool]:
    """Reference: draw again until a box fits, as torchvision does."""
    for _ in range(10):
        area = random.uniform(0.08, 1.0) * height * width
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        h, w = height, width
    return random.integers(height - h + 1), random.integers(width - w + 1), h, w, random.random() < 0.5


def test_the_distribution_equals_drawing_again_until_a_box_fits():
    count = 20_000
    boxes, mirror = draw_boxes(count, 32, 32, ResizedCrop(32, flip=True), generator())
    ours = torch.stack([*boxes, mirror]).double()
    random = np.random.default_rng(0)
    theirs = torch.tensor([sequential_box(random, 32, 32) for _ in range(count)]).double().T
    for moment in (1, 2):
        means = [values.pow(moment).mean(1) for values in (ours, theirs)]
        errors = [values.pow(moment).std(1) / count**0.5 for values in (ours, theirs)]
        assert ((means[0] - means[1]).abs() < 5 * (errors[0] ** 2 + errors[1] ** 2).sqrt()).all()


def test_the_box_is_the_whole_image_if_none_fits():
    boxes, _ = draw_boxes(50, 20, 20, ResizedCrop(8, flip=False, scale=(1, 1), ratio=(2, 3)), generator())
    assert (boxes.height == 20).all() and (boxes.width == 20).all() and (boxes.top == 0).all()


def test_no_image_is_flipped_without_flip():
    assert not draw_boxes(1000, 8, 8, ResizedCrop(8, flip=False), generator())[1].any()


def test_an_empty_batch():
    assert augment(pictures(0, 3, 8, 8), ResizedCrop(6, flip=True), generator()).shape == (0, 3, 6, 6)


def test_shapes_are_static_and_no_value_is_read_on_the_host(monkeypatch):
    augmentation = ResizedCrop(6, flip=True)
    with FakeTensorMode():
        images = torch.empty(4, 3, 8, 8, dtype=torch.uint8)
        boxes, mirror = draw_boxes(4, 8, 8, augmentation, torch.Generator())
        assert resample(images, boxes, mirror, 6).shape == (4, 3, 6, 6)
    images = pictures(4, 3, 8, 8)

    def refuse(self, *args):
        raise AssertionError("a value was read")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    augment(images, augmentation, generator())


@pytest.mark.parametrize(("stored", "size", "first"), [(8, 7, 0), (256, 224, 16), (9, 4, 2), (6, 6, 0)])
def test_centre_crops_the_middle_of_the_image(stored, size, first):
    images = pictures(2, 3, stored, stored)
    seen = centre(images, ResizedCrop(size, flip=True))
    assert torch.equal(seen, images[:, :, first : first + size, first : first + size])
    assert centre(images, Augmentation(pad=1, flip=True)).shape == images.shape


def test_invalid_arguments_are_rejected():
    with pytest.raises(ValueError, match=r"images: expected uint8 \[B, C, H, W\], got torch.float32"):
        augment(torch.zeros(2, 3, 4, 4), ResizedCrop(4, flip=True), generator())
    with pytest.raises(ValueError, match="images: expected at least 5x5 pixels, got 4x4"):
        centre(pictures(1, 1, 4, 4), ResizedCrop(5, flip=True))
    with pytest.raises(ValueError, match="size: expected pixels >= 1, got 0"):
        ResizedCrop(0, flip=True)
    with pytest.raises(ValueError, match=r"scale: expected two shares of the area in \(0, 1\], .* got \(0, 1\)"):
        ResizedCrop(4, flip=True, scale=(0, 1))
    with pytest.raises(ValueError, match=r"ratio: expected two numbers > 0, the smaller first, got \(2, 1\)"):
        ResizedCrop(4, flip=True, ratio=(2, 1))


class TestOnAGpu:
    pytestmark = ON_GPU

    def test_equals_interpolating_each_box(self):
        images, augmentation = pictures(32, 3, 256, 256), ResizedCrop(224, flip=True)
        boxes, mirror = draw_boxes(32, 256, 256, augmentation, generator(device="cuda"))
        got = resample(images.cuda(), boxes, mirror, 224).cpu().double()
        expected = interpolated(images, Boxes(*(box.cpu() for box in boxes)), mirror.cpu(), 224)
        assert (got - expected).abs().max() < 0.51

    def test_no_synchronisation_and_a_captured_graph_continues_the_draws(self):
        images, augmentation = pictures(16, 3, 32, 32).cuda(), ResizedCrop(28, flip=True)
        random, twin = generator(device="cuda"), generator(device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            expected = [augment(images, augmentation, twin) for _ in range(3)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(random)
        with torch.cuda.graph(graph):
            out = augment(images, augmentation, random)
        for image in expected:
            graph.replay()
            assert torch.equal(out, image)
