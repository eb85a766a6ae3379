"""Streamed splits hold the same data as splits in memory, and report errors when an image is read."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from oekd_fast.data import DataError, DeviceBatches, HostBatches, ImageDataset, LazySplit, lazy, load_dataset
from oekd_fast.data.readers import encoded

Image = pytest.importorskip("PIL.Image", reason="encoded images need Pillow, of the extra 'train'")
datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")

CLASSES = ("ant", "bee", "cat", "dog")
LABELS = np.repeat(np.arange(4), 10)
SPLITS = ("train", "validation", "test")


@pytest.fixture
def pictures() -> np.ndarray:
    """40 colour images (uint8, N x H x W x C) of 4 classes, sorted by class as an image folder is."""
    return np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def write_arrays(root: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    root.mkdir(exist_ok=True)
    np.save(root / f"{split}.images.npy", images)
    np.save(root / f"{split}.labels.npy", labels)


def write_folder(root: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / split / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:03d}.png")


def table(images, labels: np.ndarray) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    columns = {"image": [Image.fromarray(picture) for picture in images], "label": labels}
    return datasets.Dataset.from_dict(columns, features=features)


def write_parquet(root: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    root.mkdir(exist_ok=True)
    for shard, rows in enumerate((slice(0, 7), slice(7, None))):
        table(images[rows], labels[rows]).to_parquet(root / f"{split}-{shard}.parquet")


def write_plain_parquet(root: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write bytes and integers without the metadata of the hub."""
    arrow, parquet = (
        pytest.importorskip("pyarrow", reason="needs the extra 'train'"),
        pytest.importorskip("pyarrow.parquet", reason="needs the extra 'train'"),
    )
    cells = table(images, labels).with_format("arrow")[:]["image"].to_pylist()
    root.mkdir(exist_ok=True)
    parquet.write_table(
        arrow.table({"png": [cell["bytes"] for cell in cells], "label": labels}), root / f"{split}.parquet"
    )


WRITERS = {
    "arrays": write_arrays,
    "folder": write_folder,
    "parquet": write_parquet,
    "plain parquet": write_plain_parquet,
}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def both(root: Path, **options) -> tuple[ImageDataset, ImageDataset]:
    """Load a folder in memory and streamed."""
    return load_dataset(str(root), **options), load_dataset(str(root), stream=True, **options)


def assert_same_data(eager: ImageDataset, streamed: ImageDataset) -> None:
    assert (streamed.classes, streamed.augmentation) == (eager.classes, eager.augmentation)
    assert streamed.normalisation() == eager.normalisation()
    for name in SPLITS:
        expected, split = getattr(eager, name), getattr(streamed, name)
        assert isinstance(split, LazySplit) and len(split) == len(expected)
        assert split.image_shape == expected.image_shape and torch.equal(split.labels, expected.labels)
        assert torch.equal(torch.cat(list(split.chunks())), expected.images)


def fails(call, *parts: str) -> None:
    """Assert that `call` raises a DataError whose one-line message contains `parts` in this order."""
    with pytest.raises(DataError, match=".*".join(re.escape(part) for part in parts)) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chunk", [1, 700, lazy.CHUNK_BYTES])
def test_streamed_data_equals_data_in_memory(tmp_path, pictures, write, chunk, monkeypatch):
    monkeypatch.setattr(lazy, "CHUNK_BYTES", chunk)
    write(tmp_path / "data", "train", pictures, LABELS)
    write(tmp_path / "data", "test", pictures[::5], LABELS[::5])
    assert_same_data(*both(tmp_path / "data", seed=3, validation_fraction=0.25))
    assert_same_data(*both(tmp_path / "data", seed=3, train_images=23))


def test_cutting_a_test_split_reads_no_image(tmp_path, pictures, monkeypatch):
    write_arrays(tmp_path, "train", pictures, LABELS)
    eager = load_dataset(str(tmp_path))
    monkeypatch.setattr("oekd_fast.data.readers.arrays.ArrayImages.read", None)
    streamed = load_dataset(str(tmp_path), stream=True)
    monkeypatch.undo()
    assert_same_data(eager, streamed)


def test_streamed_data_from_the_hub(monkeypatch, pictures):
    rows = table(pictures, LABELS)
    splits = {"train": rows, "test": rows.select(range(39, 0, -3))}
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments: splits)
    assert_same_data(*both("someone/insects"))


def test_rows_can_be_gathered_in_any_order_and_repeated(tmp_path, pictures, write):
    write(tmp_path / "data", "train", pictures, LABELS)
    eager, streamed = (data.train for data in both(tmp_path / "data"))
    rows = torch.tensor([5, 0, 5, 27, 1])
    out = torch.zeros(5, 3, 6, 6, dtype=torch.uint8)
    assert streamed.gather(rows, out) is out and torch.equal(out, eager.images[rows])
    twice = streamed.select(rows).select(torch.tensor([3, 0]))
    assert torch.equal(twice.gather(torch.tensor([0, 1])), eager.images[[27, 5]])
    assert streamed.gather(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 6, 6)


def test_batches_do_not_depend_on_where_the_images_are(tmp_path, pictures, write):
    write(tmp_path / "data", "train", pictures, LABELS)
    eager, streamed = (data.train for data in both(tmp_path / "data"))
    placed = [DeviceBatches(eager, "cpu"), HostBatches(eager, "cpu"), HostBatches(streamed, "cpu")]
    order = placed[0].order(torch.Generator().manual_seed(0))
    for first in (0, 2):
        for batches in placed:
            batches.begin(order, 8, first)
        for _ in range(3 - first):
            for batches in placed:
                batches.ready()
            (images, labels), *others = (batches.take() for batches in placed)
            assert all(torch.equal(images, also) and torch.equal(labels, same) for also, same in others)


@pytest.mark.parametrize("grey", ["some", "the first", "all but the last", "all", "all of train"])
def test_grey_and_colour_images_stream_like_in_memory(tmp_path, pictures, grey, monkeypatch):
    monkeypatch.setattr(encoded, "IMAGES_PER_PASS", 7)
    grey_rows = {"some": range(3, 9), "the first": [0], "all but the last": range(39)}.get(grey, range(40))
    write_folder(tmp_path, "train", pictures, LABELS)
    write_folder(tmp_path, "test", pictures, LABELS)
    for split in ("train",) if grey == "all of train" else ("train", "test"):
        for index in grey_rows:
            path = tmp_path / split / CLASSES[LABELS[index]] / f"{index:03d}.png"
            Image.open(path).convert("L").save(path)
    eager, streamed = both(tmp_path)
    assert streamed.in_channels == (1 if grey == "all" else 3)
    assert_same_data(eager, streamed)


def test_arrays_without_a_channel_axis_and_in_another_order(tmp_path, pictures):
    write_arrays(tmp_path, "train", np.asfortranarray(pictures[..., 0]), LABELS)
    assert_same_data(*both(tmp_path))


def test_streamed_digits_are_in_memory():
    pytest.importorskip("sklearn", reason="needs the extra 'train'")
    eager, streamed = both("digits")
    assert torch.equal(eager.train.images, streamed.train.images)


def test_only_streamed_parquet_files_are_copied_to_the_cache(tmp_path, pictures, cache):
    write_parquet(tmp_path, "train", pictures, LABELS)
    load_dataset(str(tmp_path))
    assert not list(cache.rglob("*.arrow"))
    load_dataset(str(tmp_path), stream=True)
    assert list(cache.rglob("*.arrow"))


# Errors


def test_labels_are_checked_when_loading(tmp_path, pictures):
    write_arrays(tmp_path, "train", pictures, LABELS)
    write_arrays(tmp_path, "test", pictures, LABELS + 1)
    fails(lambda: load_dataset(str(tmp_path), stream=True), "test: expected labels in [0, 4), got 4")


def test_image_shapes_of_splits_are_checked_when_loading(tmp_path, pictures, write):
    write(tmp_path / "data", "train", pictures, LABELS)
    write(tmp_path / "data", "test", pictures[:, :5], LABELS)
    fails(
        lambda: load_dataset(str(tmp_path / "data"), stream=True),
        "expected images of shape 3x6x6",
        "got 3x5x6",
    )


def test_a_table_without_rows(tmp_path, pictures):
    write_parquet(tmp_path, "train", pictures, LABELS)
    table(pictures[:0], LABELS[:0]).to_parquet(tmp_path / "test.parquet")
    fails(lambda: load_dataset(str(tmp_path), stream=True), "test: expected at least one image, got none")


def test_damaged_parquet(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"no table")
    fails(lambda: load_dataset(str(tmp_path), stream=True), f"cannot read {tmp_path / 'train.parquet'}: ")


def test_shards_with_different_columns(tmp_path, pictures):
    write_parquet(tmp_path, "train", pictures, LABELS)
    table(pictures, LABELS).rename_column("image", "picture").to_parquet(tmp_path / "train-1.parquet")
    for stream in (False, True):
        fails(
            lambda stream=stream: load_dataset(str(tmp_path), stream=stream),
            f"{tmp_path / 'train-1.parquet'}: expected a column 'image' of struct<bytes: binary, path: string> as in ",
            "got none",
        )


@pytest.mark.parametrize("damage", [lambda data: b"no image", lambda data: data[: len(data) // 2], lambda data: b""])
def test_a_damaged_image_is_named_when_it_is_read(tmp_path, pictures, damage):
    write_folder(tmp_path, "train", pictures, LABELS)
    path = tmp_path / "train" / "cat" / "025.png"
    path.write_bytes(damage(path.read_bytes()))
    data = load_dataset(str(tmp_path), stream=True)
    split = next(s for s in (data.train, data.validation, data.test) if 25 in s.rows)
    row = int((split.rows == 25).nonzero())
    batches = HostBatches(split, "cpu")
    batches.begin(torch.tensor([row - 1, row]) % len(split), 1)
    batches.ready()
    fails(batches.ready, f"cannot read image {path}: ")


def test_an_image_of_another_size_is_named_when_it_is_read(tmp_path, pictures):
    write_folder(tmp_path, "train", pictures, LABELS)
    write_folder(tmp_path, "test", pictures, LABELS)
    odd = tmp_path / "test" / "bee" / "010.png"
    Image.new("RGB", (5, 4)).save(odd)
    test = load_dataset(str(tmp_path), stream=True).test
    first = tmp_path / "test" / "ant" / "000.png"
    fails(lambda: list(test.chunks()), f"{odd}: expected 6x6 pixels (height x width), the size of {first}, got 4x5")


def test_an_empty_cell_is_named_when_it_is_read(tmp_path, pictures):
    rows = table(pictures, LABELS)
    rows = rows.map(lambda row, i: {"image": None if i == 3 else row["image"]}, with_indices=True)
    rows.to_parquet(tmp_path / "train.parquet")
    rows.to_parquet(tmp_path / "test.parquet")
    test = load_dataset(str(tmp_path), stream=True).test
    fails(lambda: test.gather(torch.tensor([2, 3])), "cannot read image in row 3 of", "(test)")


@pytest.mark.parametrize(("module", "write"), [("datasets", write_parquet), ("PIL.Image", write_folder)])
def test_missing_optional_package(monkeypatch, tmp_path, pictures, module, write):
    write(tmp_path, "train", pictures, LABELS)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    fails(lambda: load_dataset(str(tmp_path), stream=True), f"package '{module}': pip install 'oekd_fast[train]'")
