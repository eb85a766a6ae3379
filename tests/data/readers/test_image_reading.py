"""Resizing of images and skipping of unreadable ones, with the same result in memory and streamed."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from oekd_fast.data import Augmentation, DataError, ImageDataset, ResizedCrop, load_dataset
from oekd_fast.data.augmentation.settings import ImageSettings
from oekd_fast.data.readers.decode import decode_images
from oekd_fast.data.readers.formats import UnreadableImage

Image = pytest.importorskip("PIL.Image", reason="encoded images need Pillow, of the extra 'train'")

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def photographs() -> list[np.ndarray]:
    """Thirty images (uint8, H x W x 3) of different sizes: ten of each class, sorted by class."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (9 + i % 7, 8 + i, 3), dtype=np.uint8) for i in range(30)]


def write_folder(root: Path, images: list[np.ndarray]) -> Path:
    for index, image in enumerate(images):
        path = root / CLASSES[index // 10] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def write_parquet(path: Path, images: list[np.ndarray], labels=None, damaged=None) -> None:
    """Write a table with the columns and types of the hub; `damaged` maps rows to bytes that replace their images."""
    datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    labels = [index // 10 for index in range(len(images))] if labels is None else labels
    columns = {"image": [Image.fromarray(image) for image in images], "label": labels}
    rows = datasets.Dataset.from_dict(columns, features=features)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path)
    if damaged is not None:
        arrow, parquet = (
            pytest.importorskip("pyarrow", reason="needs the extra 'train'"),
            pytest.importorskip("pyarrow.parquet", reason="needs the extra 'train'"),
        )
        table = parquet.read_table(path)
        cells = table["image"].to_pylist()
        for row, data in damaged.items():
            cells[row]["bytes"] = data
        cells = arrow.array(cells, type=table.schema.field("image").type)
        parquet.write_table(table.set_column(0, table.schema.field("image"), cells), path)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def both(name: object, **options) -> tuple[ImageDataset, ImageDataset]:
    """Load `name` in memory and streamed, and assert that both give the same data."""
    eager, streamed = (load_dataset(str(name), stream=stream, **options) for stream in (False, True))
    assert (eager.augmentation, eager.classes, eager.notes) == (
        streamed.augmentation,
        streamed.classes,
        streamed.notes,
    )
    for split in ("train", "validation", "test"):
        one, other = getattr(eager, split), getattr(streamed, split)
        assert torch.equal(one.labels, other.labels) and one.image_shape == other.image_shape
        assert torch.equal(torch.cat(list(one.chunks())), torch.cat(list(other.chunks())))
    return eager, streamed


def fails(name: object, *parts: str, **options) -> None:
    with pytest.raises(DataError, match=".*".join(re.escape(part) for part in parts)) as caught:
        load_dataset(str(name), **options)
    assert "\n" not in str(caught.value)


def triangles(length: int, edge: int, size: int) -> np.ndarray:
    """Return the weights (fp64 [size, length]) of a triangle filter that resizes the middle `edge` pixels to `size`."""
    scale = edge / size
    centres = (length - edge) / 2 + (np.arange(size) + 0.5) * scale
    distances = np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1)
    weights = np.maximum(0, 1 - distances)
    return weights / weights.sum(1, keepdims=True)


def middle(image: np.ndarray, size: int) -> np.ndarray:
    """Reference: the resized middle square, [C, size, size], with both axes filtered in fp64."""
    height, width = image.shape[:2]
    edge = min(height, width)
    return np.einsum("yh,xw,hwc->cyx", triangles(height, edge, size), triangles(width, edge, size), image)


# Sizes


def test_images_of_different_sizes_become_squares(tmp_path, photographs):
    write_folder(tmp_path / "train", photographs)
    write_folder(tmp_path / "test", photographs)
    eager, _ = both(tmp_path, image_size=6)
    assert eager.train.image_shape == (3, 6, 6) and eager.image_size == 6
    assert eager.augmentation == Augmentation(pad=1, flip=False)
    for image, photograph in zip(eager.test.images.numpy(), photographs, strict=True):
        assert np.abs(image - middle(photograph, 6)).max() < 1.1  # Pillow rounds after each axis


def test_resizing_does_not_alias(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    write_folder(tmp_path, [np.repeat(board[..., None], 3, 2).astype(np.uint8)] * 30)
    images = load_dataset(str(tmp_path), image_size=8).train.images
    assert ((images.int() - 127).abs() < 16).all()


def test_images_for_resized_crops_are_stored_larger(tmp_path, photographs):
    write_folder(tmp_path, photographs)
    eager, streamed = both(tmp_path, augmentation="resized_crop", image_size=7)
    assert eager.train.image_shape == (3, 8, 8) and eager.image_size == streamed.image_size == 7
    assert eager.augmentation == ResizedCrop(7, flip=False)
    assert load_dataset(str(tmp_path), augmentation="none", image_size=7).augmentation == Augmentation(0, False)


def test_images_of_different_sizes_need_image_size(tmp_path, photographs):
    write_folder(tmp_path, photographs)
    fails(tmp_path, "pixels (height x width), the size of ", "set image_size to resize all images")
    fails(
        write_folder(tmp_path / "wide", [photographs[0]] * 30),
        "expected square images, got 9x8; set image_size to resize them",
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_arrays_are_resized(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 10, channels), dtype=np.uint8)
    np.save(tmp_path / "train.images.npy", images)
    np.save(tmp_path / "train.labels.npy", np.arange(20) % 2)
    eager, _ = both(tmp_path, image_size=4)
    assert eager.train.image_shape == (channels, 4, 4)
    everything = torch.cat([split.images for split in (eager.train, eager.validation, eager.test)]).numpy()
    for image in images:
        assert (np.abs(everything - middle(image, 4)) < 1.1).all((1, 2, 3)).sum() == 1


def test_digits_are_resized():
    pytest.importorskip("sklearn", reason="needs the extra 'train'")
    digits = load_dataset("digits", image_size=12)
    assert digits.train.image_shape == (1, 12, 12) and digits.augmentation == Augmentation(pad=1, flip=False)


@pytest.mark.parametrize("name", ["imagenet_1k", "imagenet-1k"])
@pytest.mark.parametrize("folder", ["imagenet_1k", "imagenet-1k", "."])
def test_layout_of_imagenet(tmp_path, photographs, name, folder):
    root = tmp_path / folder
    write_parquet(root / "train-00000-of-00002.parquet", photographs)
    write_parquet(root / "train-00001-of-00002.parquet", photographs)
    write_parquet(root / "validation-00000-of-00001.parquet", photographs)
    write_parquet(root / "test-00000-of-00001.parquet", photographs, labels=[-1] * 30)
    eager, _ = both(name, data_dir=tmp_path, image_size=14)
    assert eager.name == "imagenet_1k" and eager.augmentation == ResizedCrop(14, flip=True)
    assert eager.train.image_shape == (3, 16, 16)
    assert [len(split) for split in (eager.train, eager.validation, eager.test)] == [54, 6, 30]


def test_known_data_of_different_sizes_defaults_to_224_pixels(tmp_path, photographs):
    write_parquet(tmp_path / "train-0.parquet", photographs[::3] * 3, labels=[0, 1, 2] * 10)
    write_parquet(tmp_path / "test-0.parquet", photographs[::3], labels=[0, 1, 2] * 3 + [0])
    data = load_dataset("cub200", data_dir=tmp_path, stream=True)
    assert data.train.image_shape == (3, 256, 256) and data.image_size == 224
    plain = load_dataset("cub200", data_dir=tmp_path, stream=True, augmentation="crop")
    assert plain.train.image_shape == (3, 224, 224) and plain.augmentation == Augmentation(pad=28, flip=True)


def test_sizes_of_tiny_imagenet(tmp_path):
    random = np.random.default_rng(0)
    for index in range(60):
        path = tmp_path / "tiny_imagenet25" / f"{index % 3:02d}" / f"{index:03d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BILINEAR).save(path)
    plain = load_dataset("tiny_imagenet25", data_dir=tmp_path)
    assert plain.augmentation == Augmentation(pad=8, flip=True)
    # The stored size 56 x 256 / 224 = 64 is their own size, so nothing is resized.
    cropped, _ = both("tiny_imagenet25", data_dir=tmp_path, augmentation="resized_crop", image_size=56)
    assert cropped.augmentation == ResizedCrop(56, flip=True) and cropped.image_size == 56
    assert torch.equal(cropped.train.images, plain.train.images)
    half, _ = both("tiny_imagenet25", data_dir=tmp_path, image_size=32)
    # The filter keeps the mean of each image, except for the weights at its border.
    means = [split.images.double().mean((1, 2, 3)) for split in (half.train, plain.train)]
    assert (means[0] - means[1]).abs().max() < 2


def test_invalid_augmentation_and_image_size_are_rejected():
    with pytest.raises(ValueError, match="augmentation: expected one of auto, none, crop, resized_crop, got 'flip'"):
        load_dataset("digits", augmentation="flip")
    with pytest.raises(ValueError, match="image_size: expected pixels >= 1, got 0"):
        load_dataset("digits", image_size=0)


@pytest.mark.parametrize(
    ("choice", "size", "known", "stored", "expected"),
    [
        ("auto", None, None, None, Augmentation(4, False)),
        ("auto", None, Augmentation(2, True), None, Augmentation(2, True)),
        ("auto", 64, Augmentation(4, True), 64, Augmentation(8, True)),
        ("auto", None, ResizedCrop(224, True), 256, ResizedCrop(224, True)),
        ("auto", 160, ResizedCrop(224, True), 183, ResizedCrop(160, True)),
        ("none", None, ResizedCrop(224, True), 224, Augmentation(0, False)),
        ("crop", None, ResizedCrop(224, True), 224, Augmentation(28, True)),
        ("resized_crop", None, Augmentation(4, True), None, ResizedCrop(32, True)),
        ("resized_crop", 32, Augmentation(4, False), 37, ResizedCrop(32, False)),
    ],
)
def test_image_settings_for_known_and_unknown_data(choice, size, known, stored, expected):
    settings = ImageSettings.choose(choice, size, known)
    assert settings.stored_size == stored and settings.augmentation(stored or 32) == expected


# Images that cannot be decoded

DAMAGES = [lambda data: b"no image", lambda data: data[: len(data) // 2], lambda data: b""]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("rows", [[0], [3, 17], [29]])
def test_unreadable_images_of_a_folder_are_skipped_and_reported(tmp_path, photographs, damage, rows):
    for split in ("train", "test"):
        write_folder(tmp_path / split, photographs)
    paths = [tmp_path / "train" / CLASSES[row // 10] / f"{row:03d}.png" for row in rows]
    for path in paths:
        path.write_bytes(damage(path.read_bytes()))
    fails(tmp_path, f"cannot read image {paths[0]}: ", image_size=6)
    data, _ = both(tmp_path, image_size=6, skip_corrupt=True)
    names = ", ".join(map(str, paths))
    (note,) = data.notes
    assert note == f"{tmp_path / 'train'}: left out {len(rows)} of 30 images, which cannot be decoded: {names}"
    assert len(data.train) + len(data.validation) == 30 - len(rows) and len(data.test) == 30
    kept = [row for row in range(30) if row not in rows]
    ours = {image.numpy().tobytes() for split in (data.train, data.validation) for image in split.images}
    assert ours == {data.test.images[row].numpy().tobytes() for row in kept}
    labels = torch.cat([data.train.labels, data.validation.labels]).sort().values
    assert labels.tolist() == [row // 10 for row in kept]


def test_unreadable_images_of_a_table_are_skipped_and_reported(tmp_path, photographs):
    write_parquet(tmp_path / "train-0.parquet", photographs)
    write_parquet(tmp_path / "test-0.parquet", photographs, damaged={row: b"no image" for row in range(5, 10)})
    data, _ = both(tmp_path, image_size=6, skip_corrupt=True)
    where = f"{tmp_path} (test)"
    names = ", ".join(f"in row {row} of {where}" for row in (5, 6, 7))
    assert data.notes[1:] == (f"{where}: left out 5 of 30 images, which cannot be decoded: {names} and 2 more",)
    assert data.test.labels.tolist() == [0] * 5 + [1] * 10 + [2] * 10


def test_there_is_no_note_if_all_images_are_readable(tmp_path, photographs):
    write_folder(tmp_path, photographs)
    skipping, _ = both(tmp_path, image_size=6, skip_corrupt=True)
    assert skipping.notes == ()
    assert torch.equal(skipping.train.images, load_dataset(str(tmp_path), image_size=6).train.images)


@pytest.mark.parametrize("stream", [False, True])
def test_a_split_without_readable_images_is_an_error(tmp_path, photographs, stream):
    write_folder(tmp_path / "train", photographs)
    write_folder(tmp_path / "test", photographs)
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    fails(tmp_path, "test: expected at least one image, got none", image_size=6, skip_corrupt=True, stream=stream)


def test_a_missing_file_is_not_skipped_as_unreadable(tmp_path):
    with pytest.raises(DataError, match=f"cannot read image lost: .*{tmp_path}") as caught:
        decode_images([("lost", tmp_path / "lost.png")], 1, skip_corrupt=True)
    assert not isinstance(caught.value, UnreadableImage)


@pytest.mark.parametrize("stream", [False, True])
def test_an_image_with_16_bits_is_an_error_with_skip_corrupt(tmp_path, photographs, stream):
    write_folder(tmp_path, photographs)
    path = tmp_path / "bee" / "015.png"
    Image.fromarray(np.zeros((6, 6), dtype=np.uint16)).save(path)
    fails(tmp_path, f"image {path}: expected 8 bits per channel", image_size=6, skip_corrupt=True, stream=stream)
