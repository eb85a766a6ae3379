import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oekd_fast.data import Augmentation, DataError, ImageDataset, Split, stratified_split

from ..support.forkserver import run_code


def dataset(images: torch.Tensor) -> ImageDataset:
    split = Split(images, torch.arange(len(images)))
    return ImageDataset("toy", split, split, split, ("a", "b"), Augmentation(pad=1, flip=False))


@pytest.mark.slow
def test_import_needs_no_optional_package():
    code = (
        "import sys, oekd_fast.data\n"
        "heavy = {'datasets', 'PIL', 'sklearn', 'pyarrow', 'triton', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    result = run_code(code)
    assert result.returncode == 0, result.stderr


def test_properties_of_a_data_set():
    toy = dataset(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert (toy.in_channels, toy.image_size, toy.num_classes, len(toy.train)) == (3, 4, 2, 2)


def test_normalisation_equals_the_statistics_of_the_pixels():
    images = torch.randint(256, (7, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = dataset(images).normalisation()
    pixels = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0)
    expected = pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(std).double(), expected, rtol=1e-6, atol=0)


def test_normalisation_of_a_constant_channel():
    images = torch.full((2, 1, 4, 4), 51, dtype=torch.uint8)
    mean, std = dataset(images).normalisation()
    assert mean == (pytest.approx(0.2),) and std == (1 / 255,)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), r"images: expected uint8 .*got float32"),
        (
            torch.zeros(2, 3, 3, dtype=torch.uint8),
            torch.zeros(2, dtype=torch.int64),
            r"got uint8 \[2, 3, 3\]",
        ),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2), "labels: expected int64 .*got float32"),
        (
            torch.zeros(2, 1, 3, 3, dtype=torch.uint8),
            torch.zeros(3, dtype=torch.int64),
            "labels: expected 2, one per image, got 3",
        ),
    ],
)
def test_split_rejects_other_tensors(images, labels, message):
    with pytest.raises(DataError, match=message):
        Split(images, labels)


def test_images_must_be_square():
    with pytest.raises(DataError, match="toy: expected square images, got 4x5; set image_size to resize them"):
        dataset(torch.zeros(2, 3, 4, 5, dtype=torch.uint8))


def test_augmentation_rejects_a_negative_pad():
    with pytest.raises(ValueError, match="pad: expected pixels >= 0, got -1"):
        Augmentation(pad=-1, flip=False)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**64),
)
def test_stratified_split_holds_out_the_same_share_of_every_class(sizes, fraction, seed):
    counts = torch.tensor(sizes)
    labels = torch.arange(len(sizes)).repeat_interleave(counts)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    keep, held = stratified_split(labels, fraction, seed)

    assert torch.equal(torch.cat([keep, held]).sort().values, torch.arange(len(labels)))
    assert torch.equal(keep, keep.sort().values) and torch.equal(held, held.sort().values)
    assert keep.dtype == held.dtype == torch.int64
    assert labels[keep].unique().tolist() == labels.unique().tolist()
    largest = sum(max(size - 1, 0) for size in sizes)
    assert len(held) == min(round(fraction * len(labels)), largest)
    if largest >= round(fraction * len(labels)) and all(fraction * n <= n - 1 for n in sizes if n):
        taken = labels[held].bincount(minlength=len(sizes))
        assert ((taken - fraction * counts).abs() < 1 + 1e-6).all()


def test_stratified_split_depends_on_its_seed_only():
    labels = torch.arange(10).repeat(20)
    torch.manual_seed(1)
    first = stratified_split(labels, 0.1, 3)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = stratified_split(labels, 0.1, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first[1], stratified_split(labels, 0.1, 4)[1])


def test_stratified_split_has_a_known_result():
    _, held = stratified_split(torch.arange(2).repeat(10), 0.2, 0)
    assert held.tolist() == [1, 4, 10, 11]


@pytest.mark.parametrize(
    ("fraction", "seed", "message"),
    [
        (0.0, 0, r"fraction: expected a number in \(0, 1\), got 0.0"),
        (1.0, 0, r"in \(0, 1\), got 1.0"),
        (0.5, -1, "seed: expected an integer >= 0, got -1"),
    ],
)
def test_stratified_split_rejects_arguments_out_of_range(fraction, seed, message):
    with pytest.raises(ValueError, match=message):
        stratified_split(torch.zeros(4, dtype=torch.int64), fraction, seed)
