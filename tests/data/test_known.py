"""Known data sets, loaded from a stand-in for the hub with the columns and splits of the hub."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from oekd_fast.data import Augmentation, DataError, ImageDataset, ResizedCrop, Split, load_dataset
from oekd_fast.data.known import KNOWN, known_name, may_hold_the_same, same_data_name

Image = pytest.importorskip("PIL.Image", reason="encoded images need Pillow, of the extra 'train'")
DOCS = Path(__file__).parents[2] / "docs" / "data.md"

# For each name: arguments of `datasets.load_dataset`, columns, splits, channels and image sizes on the hub.
PHOTOGRAPHS = ((9, 12), (15, 11))
HUB = {
    "cifar10": (("uoft-cs/cifar10", None), ("img", "label"), ("train", "test"), 3, ((32, 32),)),
    "cifar100": (("uoft-cs/cifar100", None), ("img", "fine_label", "coarse_label"), ("train", "test"), 3, ((32, 32),)),
    "svhn": (
        ("ufldl-stanford/svhn", "cropped_digits"), ("image", "label"), ("train", "test", "extra"), 3, ((32, 32),)
    ),
    "fashion_mnist": (
        ("zalando-datasets/fashion_mnist", None), ("image", "label"), ("train", "test"), 1, ((28, 28),)
    ),
    "mnist": (("ylecun/mnist", None), ("image", "label"), ("train", "test"), 1, ((28, 28),)),
    "stl10": (("tanganke/stl10", None), ("image", "label"), ("train", "test"), 3, ((96, 96),)),
    "cub200": (("Donghyun99/CUB-200-2011", None), ("image", "label"), ("train", "test"), 3, PHOTOGRAPHS),
    "caltech256": (
        ("ilee0022/Caltech-256", None), ("image", "label", "text"), ("train", "validation", "test"), 3, PHOTOGRAPHS
    ),
    "tiny_imagenet": (("zh-plus/tiny-imagenet", None), ("image", "label"), ("train", "valid"), 3, ((64, 64),)),
    "imagenet_1k": (
        ("ILSVRC/imagenet-1k", None), ("image", "label"), ("train", "validation", "test"), 3, PHOTOGRAPHS
    ),
}  # fmt: skip


def table(columns, channels, sizes, labels):
    datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")
    random, names = np.random.default_rng(0), datasets.ClassLabel(names=["no", "yes"])
    pictures = [
        Image.fromarray(random.integers(0, 256, (*sizes[i % len(sizes)], 3), dtype=np.uint8)) for i in range(20)
    ]
    values = {columns[0]: [picture if channels == 3 else picture.convert("L") for picture in pictures]}
    features = {columns[0]: datasets.Image()}
    for column in columns[1:]:
        values[column] = ["a text"] * 20 if column == "text" else labels
        features[column] = datasets.Value("string") if column == "text" else names
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def from_hub(monkeypatch, known, name) -> ImageDataset:
    """Load the known data set `known` under `name` from a stand-in for the hub."""
    datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")
    call, columns, splits, channels, sizes = HUB[known]
    calls = []

    def load(*arguments):
        calls.append(arguments)
        unlabelled = "test" if known == "imagenet_1k" else "none"
        return {
            name: table(columns, channels, sizes, [-1] * 20 if name == unlabelled else [0, 1] * 10) for name in splits
        }

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = load_dataset(name, stream=known in ("cub200", "imagenet_1k"))
    assert calls == [call]
    return data


@pytest.fixture(params=HUB)
def loaded(request, monkeypatch) -> ImageDataset:
    return from_hub(monkeypatch, request.param, request.param.replace("_", "-"))


def test_a_known_data_set_from_the_hub(loaded):
    known, (_, _, splits, channels, sizes) = KNOWN[loaded.name], HUB[loaded.name]
    assert loaded.augmentation == known.augmentation and loaded.in_channels == channels
    assert loaded.num_classes == 2
    own_validation = "validation" in splits and "test" not in known.skip_splits
    sizes_of_splits = [len(split) for split in (loaded.train, loaded.validation, loaded.test)]
    assert sizes_of_splits == ([20, 20, 20] if own_validation else [18, 2, 20])
    assert loaded.image_size == (sizes[0][0] if len(sizes) == 1 else 224)
    assert loaded.train.image_shape[1] == (sizes[0][0] if len(sizes) == 1 else 256)
    mean, std = loaded.published_normalisation()
    assert len(mean) == len(std) == channels and all(0 < value < 1 for value in (*mean, *std))


@pytest.mark.parametrize("known", HUB)
def test_the_name_on_the_hub_loads_the_known_data_set(monkeypatch, known):
    """Columns, configuration, skipped splits, augmentation and statistics are those of the known name."""
    (hub_id, _), *_ = HUB[known]
    assert known_name(hub_id) == known
    named, by_id = (from_hub(monkeypatch, known, name) for name in (known, hub_id))
    for attribute in ("name", "classes", "augmentation", "published", "notes"):
        assert getattr(by_id, attribute) == getattr(named, attribute), attribute
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(by_id, split).labels, getattr(named, split).labels)


def test_this_file_covers_every_known_name():
    assert KNOWN.keys() - HUB.keys() == {"tiny_imagenet25"}


def test_hyphens_may_replace_underscores():
    assert known_name("tiny-imagenet") == "tiny_imagenet" and known_name("imagenet-1k") == "imagenet_1k"
    assert known_name("digits") is None and known_name("a/b") is None and known_name("uoft_cs/cifar100") is None


def test_epochs_are_those_of_the_paper():
    epochs = {name: known.epochs for name, known in KNOWN.items() if known.epochs is not None}
    assert epochs == {"cifar10": 350, "cifar100": 450, "svhn": 50, "imagenet_1k": 100}


def test_the_documented_table_matches_the_known_data_sets():
    rows = {}
    for line in DOCS.read_text().splitlines():
        if match := re.fullmatch(r"\| `(\w+)` \| (.* \|.*\|.*) \|", line):
            rows[match[1]] = [cell.strip() for cell in match[2].split("|")]
    assert rows.keys() == KNOWN.keys()
    for name, (hub, augmentation, epochs) in rows.items():
        known = KNOWN[name]
        crop = known.augmentation
        flip = ", flip" if crop.flip else ""
        described = f"resized crop to {crop.size}" if isinstance(crop, ResizedCrop) else f"pad {crop.pad}, crop"
        assert augmentation == described + flip
        assert hub == ", ".join(filter(None, (known.hub_id or "files only", known.config)))
        assert epochs == str(known.epochs or "")


def toy(**fields) -> ImageDataset:
    split = Split(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.arange(2))
    return ImageDataset("toy", split, split, split, ("a", "b"), Augmentation(1, False), **fields)


def test_missing_or_unsuitable_published_statistics():
    with pytest.raises(DataError, match="normalisation: expected 'computed', got 'published'; toy has no published"):
        toy().published_normalisation()
    grey = ((0.5,), (0.5,))
    with pytest.raises(DataError, match="expected statistics of 3 channels, got the published ones of toy with 1"):
        toy(published=grey).published_normalisation()


def test_two_names_of_one_data_set_are_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("data")
    for name in ("data", "data/", "./data", "~/data", "other/../data", "link", str(tmp_path / "data")):
        assert same_data_name("data", name) and may_hold_the_same("data", name), name
    assert not same_data_name("data", "other") and may_hold_the_same("data", "other")
    assert not may_hold_the_same("data", "missing") and may_hold_the_same("missing", "data")
    assert same_data_name("cifar10", "uoft-cs/cifar10") and same_data_name("tiny-imagenet", "tiny_imagenet")
    for one, other in (("cifar10", "cifar100"), ("digits", "data"), ("digits", "cifar10"), ("cifar10", "data")):
        assert not same_data_name(one, other) and not may_hold_the_same(one, other)
