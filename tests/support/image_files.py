"""Writers of small data sets in every layout that `load_dataset` reads, and comparisons of loaded data sets."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from oekd_fast.data import DataError, ImageDataset, Split, load_dataset

Image = pytest.importorskip("PIL.Image", reason="encoded images need Pillow, of the extra 'train'")

CLASSES = ("ant", "bee", "cat", "dog")


def write_arrays(root: Path, images: np.ndarray, labels: np.ndarray, split: str = "train") -> None:
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / f"{split}.images.npy", images)
    np.save(root / f"{split}.labels.npy", labels)


def write_folder(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:03d}.png")


def hub_table(images: np.ndarray, labels: np.ndarray, names=CLASSES, image="image", label="label"):
    """Return a `datasets.Dataset` with the columns and types of tables on the hub."""
    datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(names))})
    columns = {image: [Image.fromarray(picture) for picture in images], label: labels}
    return datasets.Dataset.from_dict(columns, features=features)


def write_parquet(path: Path, images: np.ndarray, labels: np.ndarray, **columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    hub_table(images, labels, **columns).to_parquet(path)


def assert_same_split(first: Split, second: Split) -> None:
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)


def assert_same_data(first: ImageDataset, second: ImageDataset) -> None:
    for split in ("train", "validation", "test"):
        assert_same_split(getattr(first, split), getattr(second, split))


def assert_load_fails(name: object, *parts: str, **arguments) -> DataError:
    """Assert that loading `name` raises a DataError whose one-line message contains `parts` in this order."""
    with pytest.raises(DataError, match=".*".join(re.escape(part) for part in parts)) as caught:
        load_dataset(str(name), **arguments)
    assert "\n" not in str(caught.value)
    return caught.value
