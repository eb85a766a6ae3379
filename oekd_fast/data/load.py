"""From the name of a data set to the data set."""

import re
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from oekd_fast.data.assemble import RawSplits, assemble
from oekd_fast.data.augmentation.settings import AnyAugmentation, Augmentation, Protocol, Wish
from oekd_fast.data.dataset import DataError, ImageDataset
from oekd_fast.data.known import KNOWN, KnownDataset, known_name
from oekd_fast.data.readers.arrays import has_arrays, read_arrays
from oekd_fast.data.readers.digits import read_digits
from oekd_fast.data.readers.hub import read_hub
from oekd_fast.data.readers.image_folder import read_image_folder
from oekd_fast.data.readers.parquet import has_parquet, read_parquet
from oekd_fast.data.readers.reading import Reading

DIGITS: AnyAugmentation = Augmentation(pad=1, flip=False)
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
LAYOUTS = (
    "train.images.npy and train.labels.npy, train-*.parquet, or train/<class>/*.png (and the same for test), "
    "or <class>/*.png"
)


def load_dataset(
    name: str,
    *,
    data_dir: str | Path | None = None,
    train_images: int | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    stream: bool = False,
    augmentation: Wish = "auto",
    image_size: int | None = None,
    skip_corrupt: bool = False,
) -> ImageDataset:
    """Load a data set into memory, or with `stream` so that its images are read when they are needed.

    `name` is, in this order:

    1. "digits": scikit-learn's 8x8 scans, part of that package.
    2. A known name ("cifar10", "cifar100", "svhn", "fashion_mnist", "mnist", "stl10", "cub200", "caltech256",
       "tiny_imagenet", "tiny_imagenet25", "imagenet_1k"; hyphens will do for underscores), or the hub's name of such a
       data set ("uoft-cs/cifar100"): with `data_dir`, the files in `data_dir/<name>` in any layout of 3, or parquet
       files in `data_dir` itself; without, from the Hugging Face hub. A folder that has a known name is reached as
       "./<name>".
    3. A folder with arrays (`train.images.npy`: uint8, N x H x W x C or N x H x W, and `train.labels.npy`),
       parquet files (`train-*.parquet`), or images in `train/<class>/` or just `<class>/`. `test` and
       `validation` (or `valid`, `val`) are named like `train`.
    4. "owner/name": any other data set of the Hugging Face hub.

    A validation split without a test split is used as the test. A test split that is missing is a stratified
    fifth of the training images, always the same; a validation split that is missing is a stratified
    `validation_fraction` of the rest, chosen by `seed`.

    Args:
        name: see above.
        data_dir: folder with the files of a known name; not used by digits, an error with 3 and 4.
        train_images: keep this many of the training images, at least one of each class, before a validation split is
            cut from them; drawn with a seed of its own, each class by its share. None: all.
        validation_fraction: in (0, 1).
        seed: of the validation split, 0 or more.
        stream: leave the images on the disk (all but the digits), for data that does not fit in memory. Labels are
            read and checked as ever; a damaged image is found when its turn comes.
        augmentation: what training images are to go through: "crop" (padded, cropped, mirrored), "resized_crop",
            "none", or "auto": resized crops of known data whose images differ in size, crops of all other.
        image_size: of what a network sees, to which images are brought by their middle square; with resized crops they
            are kept 8/7 as large, and evaluation sees the centre. None: 224 for known data whose images differ in size,
            otherwise their own, which then must be one.
        skip_corrupt: leave out images that cannot be decoded, and say so in the notes; otherwise they are errors. A
            streamed data set is decoded once for that.

    Raises:
        ValueError: there is no such augmentation or image size.
        DataError: an argument is out of range, or the data is missing, malformed or inconsistent.
    """
    if not 0 < validation_fraction < 1:
        raise DataError(f"validation_fraction must be above 0 and below 1, got {validation_fraction}")
    if seed < 0:
        raise DataError(f"seed must be 0 or more, got {seed}")
    name = known_name(name) or name
    known = KNOWN.get(name)
    suits = DIGITS if name == "digits" else None if known is None else known.augmentation
    protocol = Protocol.choose(augmentation, image_size, suits)
    published = None if known is None else known.published
    reading = Reading(stream=stream, size=protocol.stored_size, skip_corrupt=skip_corrupt)
    raw = _read(name, known, None if data_dir is None else Path(data_dir).expanduser(), reading)
    return assemble(name, raw, protocol, published, train_images, validation_fraction, seed)


def _read(name: str, known: KnownDataset | None, data_dir: Path | None, reading: Reading) -> RawSplits:
    if name == "digits":
        return read_digits(reading)
    if known is not None:
        return _read_known(name, known, data_dir, reading)
    folder = Path(name).expanduser()
    is_folder, is_hub_id = folder.is_dir(), HUB_ID.fullmatch(name) is not None
    if not is_folder and not is_hub_id:
        near = get_close_matches(name, ["digits", *KNOWN], n=3) or ["digits", *KNOWN]
        raise DataError(
            f"unknown dataset {name!r}: the nearest known names are {', '.join(near)}; "
            "the path of an existing folder and a hub name (owner/name) are accepted too"
        )
    if data_dir is not None:
        raise DataError(f"data_dir goes with a known name ({', '.join(KNOWN)}), got {name!r} with {data_dir}")
    return _read_folder(folder, reading) if is_folder else read_hub(name, None, reading)


def _read_known(name: str, known: KnownDataset, data_dir: Path | None, reading: Reading) -> RawSplits:
    reading = replace(reading, image_column=known.image_column, label_column=known.label_column, without=known.without)
    if data_dir is None:
        if known.hub_id is None:
            raise DataError(f"{name!r} is on no hub: pass data_dir, whose folder {name} holds {LAYOUTS}")
        return read_hub(known.hub_id, known.config, reading)
    for folder in (data_dir / name, data_dir / name.replace("_", "-")):
        if folder.is_dir():
            return _read_folder(folder, reading)
    if has_parquet(data_dir):
        return read_parquet(data_dir, reading)
    raise DataError(_how_to_get(name, known, data_dir))


def _read_folder(root: Path, reading: Reading) -> RawSplits:
    if has_arrays(root):
        return read_arrays(root, reading)
    if has_parquet(root):
        return read_parquet(root, reading)
    if not any(path.is_dir() for path in root.iterdir()):
        raise DataError(f"{root} holds no data: expected {LAYOUTS}")
    return read_image_folder(root, reading)


def _how_to_get(name: str, known: KnownDataset, data_dir: Path) -> str:
    looked = f"data_dir {data_dir} must have a folder {name!r} or train-*.parquet, and has neither"
    if known.hub_id is None:
        return f"{looked}. The folder may hold {LAYOUTS}"
    source = ", ".join(repr(part) for part in (known.hub_id, known.config) if part)
    return (
        f"{looked}. Leave data_dir out to use the hub, or make the folder where there is a network: "
        f"for split, rows in datasets.load_dataset({source}).items(): "
        f"rows.to_parquet(f'{data_dir / name}/{{split}}.parquet')"
    )
