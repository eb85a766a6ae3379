"""Load a data set by the name of a known data set, of a folder or of a hub."""

import os
import re
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from oekd_fast.data.assemble import SourceSplits, assemble
from oekd_fast.data.augmentation.settings import AnyAugmentation, Augmentation, AugmentationChoice, ImageSettings
from oekd_fast.data.dataset import DataError, ImageDataset, Statistics
from oekd_fast.data.known import KNOWN, KnownDataset, known_name
from oekd_fast.data.names import printable
from oekd_fast.data.readers.arrays import has_arrays, read_arrays
from oekd_fast.data.readers.digits import read_digits
from oekd_fast.data.readers.folder_scan import subfolders
from oekd_fast.data.readers.formats import MAX_PIXELS
from oekd_fast.data.readers.hub import read_hub
from oekd_fast.data.readers.image_folder import read_image_folder
from oekd_fast.data.readers.parquet import has_parquet, read_parquet
from oekd_fast.data.readers.reading import ReadOptions
from oekd_fast.data.readers.saved_to_disk import is_saved_to_disk, read_saved_to_disk

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
    augmentation: AugmentationChoice = "auto",
    image_size: int | None = None,
    skip_corrupt: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageDataset:
    """Load a data set into memory, or prepare to stream its images from disk.

    `name` is resolved in this order:

    1. "digits": the 1,797 scans of 8x8 pixels that are part of scikit-learn.
    2. A known name: "cifar10", "cifar100", "svhn", "fashion_mnist", "mnist", "stl10", "cub200", "caltech256",
       "tiny_imagenet", "tiny_imagenet25" or "imagenet_1k". Hyphens may replace underscores, and the name of such a
       data set on the hub ("uoft-cs/cifar100") is accepted too. With `data_dir`, the files are read from
       `data_dir/<name>` in any layout of 3, or from parquet files in `data_dir` itself. Without it, they come from the
       Hugging Face hub. Pass "./<name>" to read a folder that has a known name.
    3. A folder with arrays (`train.images.npy`: uint8, N x H x W x C or N x H x W, and `train.labels.npy`), parquet
       files (`train-*.parquet`, or a clone of a hub data set), a folder that `save_to_disk` wrote, or images in
       `train/<class>/` or in `<class>/`. The splits `test` and `validation` are named in the same way. Usual names in
       any case are accepted: "Training", "dev", "valid", "eval", "Testing".
    4. "owner/name": any other data set on the Hugging Face hub.

    A validation split without a test split becomes the test split. A missing test split is a stratified fifth of the
    training images, which does not depend on `seed`. A missing validation split is a stratified share
    `validation_fraction` of the remaining training images, drawn with `seed`.

    Args:
        name: data set, as described above.
        data_dir: folder with the files of a known data set; ignored for "digits", an error for 3 and 4.
        train_images: number of training images to keep, at least one per class; by default all are kept. The subset
            keeps the share of each class, does not depend on `seed`, and is drawn before a validation split is cut.
        validation_fraction: share of a validation split that has to be cut, in (0, 1).
        seed: seed of that validation split, an integer >= 0.
        stream: leave the images on disk and read them when a batch needs them, for data that does not fit in memory.
            Labels are still read and checked now; an unreadable image is reported when it is reached. The digits are
            always in memory.
        augmentation: augmentation of training images: "crop" (pad, crop, flip), "resized_crop", "none", or "auto",
            which takes resized crops for known data with images of different sizes and crops for everything else.
        image_size: height and width of the network's input in pixels. Images are cropped to their middle square and
            resized. For resized crops they are stored 8/7 as large, and evaluation takes their centre. The default is
            224 for known data with images of different sizes; otherwise images keep their size, which has to be the
            same for all.
        skip_corrupt: leave out images that cannot be decoded and report them in the notes, instead of raising an
            error. With `stream`, all images are decoded once to find them.
        image_column, label_column: columns of a data set of tables (parquet files, `save_to_disk`, the hub). By
            default they are found by their names and types, which a note says, and a choice in doubt is an error.

    Returns:
        The data set, with uint8 images and int64 labels.

    Raises:
        ValueError: `augmentation` or `image_size` is invalid.
        DataError: another argument is out of range, or the data is missing, malformed or inconsistent.
    """
    if not 0 < validation_fraction < 1:
        raise DataError(f"validation_fraction: expected a number in (0, 1), got {validation_fraction}")
    if seed < 0:
        raise DataError(f"seed: expected an integer >= 0, got {seed}")
    name = known_name(name) or name
    settings = image_settings(name, augmentation, image_size)
    options = ReadOptions(
        image_column=image_column,
        label_column=label_column,
        stream=stream,
        size=settings.stored_size,
        skip_corrupt=skip_corrupt,
    )
    source = read_splits(name, data_dir, options)
    return assemble(name, source, settings, published_statistics(name), train_images, validation_fraction, seed)


def image_settings(name: str, augmentation: AugmentationChoice, image_size: int | None) -> ImageSettings:
    """Return augmentation and image sizes of the data set `name`; the arguments are those of `load_dataset`.

    Raises:
        ValueError: an argument is invalid.
    """
    known = KNOWN.get(known_name(name) or name)
    known_augmentation = known.augmentation if known is not None else DIGITS if name == "digits" else None
    settings = ImageSettings.choose(augmentation, image_size, known_augmentation)
    if settings.stored_size is not None and settings.stored_size**2 > MAX_PIXELS:
        raise DataError(f"image_size: expected images of at most {MAX_PIXELS:,} pixels, got {image_size}")
    return settings


def published_statistics(name: str) -> Statistics | None:
    """Return the channel statistics of the data set `name` in common use, or None."""
    known = KNOWN.get(known_name(name) or name)
    return None if known is None else known.published


def read_splits(name: str, data_dir: str | Path | None, options: ReadOptions) -> SourceSplits:
    """Find a data set and read its splits as they are stored; `name` and `data_dir` are those of `load_dataset`.

    Raises:
        DataError: the data is missing or malformed.
    """
    name = known_name(name) or name
    known, data_dir = KNOWN.get(name), None if data_dir is None else Path(os.path.expanduser(data_dir))
    if name == "digits":
        return read_digits(options)
    if known is not None:
        return _read_known(name, known, data_dir, options)
    folder = Path(os.path.expanduser(name))
    is_folder, is_hub_id = os.path.isdir(folder), HUB_ID.fullmatch(name) is not None
    if not is_folder and not is_hub_id:
        near = get_close_matches(name, ["digits", *KNOWN], n=3) or ["digits", *KNOWN]
        raise DataError(
            f"dataset: expected a known name, an existing folder or a hub name (owner/name), got {name!r}; "
            f"the nearest known names are {', '.join(near)}"
        )
    if data_dir is not None:
        raise DataError(f"data_dir: expected a dataset with a known name ({', '.join(KNOWN)}), got {name!r}")
    return _read_folder(folder, options) if is_folder else read_hub(name, options)


def _read_known(name: str, known: KnownDataset, data_dir: Path | None, options: ReadOptions) -> SourceSplits:
    options = replace(
        options,
        image_column=options.image_column or known.image_column,
        label_column=options.label_column or known.label_column,
        config=known.config,
        skip_splits=known.skip_splits,
    )
    if data_dir is None:
        if known.hub_id is None:
            raise DataError(f"data_dir: expected a folder with {name}, which is not on the hub; {name} holds {LAYOUTS}")
        return read_hub(known.hub_id, options)
    for folder in (data_dir / name, data_dir / name.replace("_", "-")):
        if os.path.isdir(folder):
            return _read_folder(folder, options)
    # Other folders in `data_dir` may hold other data sets.
    for folder in (data_dir, data_dir / "data", *([data_dir / known.config] if known.config else [])):
        if has_parquet(folder, nested=False):
            return read_parquet(folder, options)
    raise DataError(_missing_files(name, known, data_dir))


def _read_folder(root: Path, options: ReadOptions) -> SourceSplits:
    if has_arrays(root):
        return read_arrays(root, options)
    if is_saved_to_disk(root):
        return read_saved_to_disk(root, options)
    if has_parquet(root):
        return read_parquet(root, options)
    if not subfolders(root):
        raise DataError(f"{printable(root)}: expected {LAYOUTS}, got none of them")
    return read_image_folder(root, options)


def _missing_files(name: str, known: KnownDataset, data_dir: Path) -> str:
    """Return the error message for a `data_dir` without the files of `name`, which says how to get them."""
    problem = f"data_dir: expected a folder {name!r} or train-*.parquet in {printable(data_dir)}, got neither"
    if known.hub_id is None:
        return f"{problem}; the folder may hold {LAYOUTS}"
    source = ", ".join(repr(part) for part in (known.hub_id, known.config) if part)
    return (
        f"{problem}; leave data_dir out to use the hub, or create the folder on a machine with network access: "
        f"for split, rows in datasets.load_dataset({source}).items(): "
        f"rows.to_parquet(f'{printable(data_dir / name)}/{{split}}.parquet')"
    )
