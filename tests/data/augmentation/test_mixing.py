"""Mixup and CutMix: the distribution of the ratio, pixels and labels against the formulas, draws, bad labels."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from oekd_fast.data import Mixing, mix
from oekd_fast.data.augmentation.mixing import draw_shares, symmetric_beta

CLASSES = 5


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def batch(rows, height=9, width=6):
    images = torch.randint(256, (rows, 3, height, width), dtype=torch.uint8, generator=generator(0))
    return images, torch.randint(CLASSES, (rows,), generator=generator(2))


def neighbours(rows):
    return [i + 1 if i % 2 == 0 and i + 1 < rows else i - 1 for i in range(rows)]


def draws_of_beta(alpha, count=200_000):
    u, v = torch.rand(2, count, generator=generator()).unbind()
    return symmetric_beta(torch.full((count,), alpha), u, v).double()


@pytest.mark.parametrize(
    ("alpha", "distribution"),
    [
        (0.5, lambda x: 2 / math.pi * torch.asin(x.sqrt())),
        (1.0, lambda x: x),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
        (3.0, lambda x: 10 * x**3 - 15 * x**4 + 6 * x**5),
    ],
)
def test_the_ratio_has_the_beta_distribution(alpha, distribution):
    """The Kolmogorov-Smirnov statistic exceeds 1.95 / sqrt(n) with a probability of 0.001."""
    x = draws_of_beta(alpha).sort().values
    ranks = torch.arange(len(x) + 1) / len(x)
    expected = distribution(x)
    distance = torch.maximum((expected - ranks[:-1]).abs().max(), (ranks[1:] - expected).abs().max())
    assert distance < 1.95 / len(x) ** 0.5


@pytest.mark.parametrize("alpha", [1e-4, 0.01, 0.2, 0.8, 50.0, 1e6])
def test_the_ratio_has_the_moments_of_the_beta_distribution(alpha):
    x = draws_of_beta(alpha)
    assert ((x >= 0) & (x <= 1)).all()
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(x.mean() - 0.5) < 5 * (variance / len(x)) ** 0.5
    assert (x - 0.5).square().mean() == pytest.approx(variance, rel=0.02)


def test_the_ratio_is_finite_at_the_ends_of_the_draws():
    below_one = 1 - 2.0**-24
    u, v = torch.tensor([0.0, 0.0, 1e-38, below_one]), torch.tensor([0.0, 0.5, 0.1, 0.3])
    for alpha in (1e-4, 1.0, 1e6):
        x = symmetric_beta(torch.full((4,), alpha), u, v)
        assert x[:2].tolist() == [1.0, 0.0] and ((x >= 0) & (x <= 1)).all()


@pytest.mark.parametrize("rows", [1, 2, 7, 8])
def test_mixup_adds_up_images_and_labels_in_one_ratio(rows):
    (images, labels), mixing = batch(rows), Mixing(mixup=0.7)
    _, ratio = draw_shares(9, 6, mixing, generator())
    pixels, target = mix(images, labels, CLASSES, mixing, generator())
    other = neighbours(rows) if rows > 1 else [0]
    share, one_hot = ratio.double(), torch.eye(CLASSES, dtype=torch.float64)[labels]
    expected = share * images.double() + (1 - share) * images[other].double()
    assert 0.01 < share < 0.99 and pixels.dtype == torch.uint8
    assert (pixels.double() - expected).abs().max() <= 0.5 + 1e-4  # rounded
    torch.testing.assert_close(target.double(), share * one_hot + (1 - share) * one_hot[other], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_replaces_a_box_and_weights_labels_by_its_area(seed):
    """The box of the published code, from the same draws."""
    height, width, (images, labels) = 9, 6, batch(8)
    first, second, _, y, x = torch.rand(5, generator=generator(seed)).tolist()
    cosine = math.cos(2 * math.pi * second)
    t = math.copysign(math.sqrt(2 * (1 / first - 1)) * abs(cosine), cosine)  # alpha = 1
    ratio = 0.5 + 0.5 * t / math.sqrt(2 + t * t)
    cut_height, cut_width = int(height * math.sqrt(1 - ratio)), int(width * math.sqrt(1 - ratio))
    middle_y, middle_x = int(y * height), int(x * width)
    top, bottom = (min(max(middle_y + sign * (cut_height // 2), 0), height) for sign in (-1, 1))
    left, right = (min(max(middle_x + sign * (cut_width // 2), 0), width) for sign in (-1, 1))
    other = neighbours(8)
    expected = images.clone()
    expected[:, :, top:bottom, left:right] = images[other][:, :, top:bottom, left:right]
    pixels, target = mix(images, labels, CLASSES, Mixing(cutmix=1.0), generator(seed))
    assert torch.equal(pixels, expected)
    share = 1 - (bottom - top) * (right - left) / (height * width)
    one_hot = torch.eye(CLASSES)[labels]
    torch.testing.assert_close(target, share * one_hot + (1 - share) * one_hot[other], rtol=0, atol=1e-6)


def test_with_both_each_batch_has_either_with_its_own_alpha():
    random, cut, ratios = generator(), 0, []
    for _ in range(1000):
        own_share, ratio = draw_shares(8, 8, Mixing(mixup=1e6, cutmix=1.0), random)
        if own_share.unique().numel() == 1 and 0 < ratio < 1:
            ratios.append(ratio)
        else:
            cut += 1
            assert ((own_share == 0) | (own_share == 1)).all() and ratio == own_share.mean()
    assert abs(cut - 500) < 5 * 250**0.5  # five standard deviations
    assert max(abs(ratio - 0.5) for ratio in ratios) < 0.01


@pytest.mark.parametrize("mixing", [Mixing(0.2), Mixing(cutmix=1.0), Mixing(0.2, 1.0)], ids=str)
def test_every_call_draws_alike_and_repeats_with_the_generator(mixing):
    random = generator()
    first, second = mix(*batch(8), CLASSES, mixing, random), mix(*batch(8), CLASSES, mixing, random)
    assert not torch.equal(first[1], second[1])
    assert all(map(torch.equal, first, mix(*batch(8), CLASSES, mixing, generator())))
    expected = generator()
    for _ in range(2):
        torch.rand(5, generator=expected)
    assert torch.equal(random.get_state(), expected.get_state())


def test_no_value_is_read_on_the_host():
    """Reading a value of a fake tensor raises."""
    with FakeTensorMode():
        images, labels = torch.empty(8, 3, 9, 6, dtype=torch.uint8), torch.empty(8, dtype=torch.int64)
        pixels, target = mix(images, labels, CLASSES, Mixing(0.2, 1.0), generator())
    assert pixels.shape == (8, 3, 9, 6) and target.shape == (8, CLASSES)


def test_labels_out_of_range_become_nan_and_no_index():
    images, _ = batch(4)
    _, target = mix(images, torch.tensor([0, CLASSES, 2, 3]), CLASSES, Mixing(0.5), generator())
    assert target[:2].isnan().all() and target[2:].isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "mixup: expected a number > 0 for mixup or cutmix, got None for both"),
        ({"mixup": 0.0}, "mixup: expected a finite number > 0, got 0.0"),
        ({"cutmix": math.inf}, "cutmix: expected a finite number > 0, got inf"),
    ],
)
def test_bad_options_are_named(fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Mixing(**fields)
