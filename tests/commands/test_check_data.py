"""The command that checks a data set: its tables, its exit status, and its one-line errors."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from oekd_fast.check_data import main

from ..support.image_files import Image, write_arrays, write_folder
from ..support.tables import LABELS, PNGS, class_names, save_dict_to_disk, structs, table, write

ARROW = table({"image": {"_type": "Image"}, "label": class_names("cat", "dog")}, image=structs(PNGS), label=LABELS)


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """40 colour images of 4 classes and their labels."""
    return np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8), np.repeat(np.arange(4), 10)


@pytest.fixture
def folder(tmp_path, labelled) -> Path:
    """A folder with 40 training and 20 test images of four classes, which are all different."""
    images, labels = labelled
    write_folder(tmp_path / "data/train", images, labels)
    write_folder(tmp_path / "data/test", 255 - images[::2], labels[::2])
    return tmp_path / "data"


def run(capsys, *arguments: object) -> tuple[int, list[str], list[str]]:
    """Return the exit status and the lines of both outputs."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out.splitlines(), captured.err.splitlines()


def row(lines: list[str], start: str) -> list[str]:
    """Return the words after `start` in the only line that starts with it."""
    (line,) = (line for line in lines if line.startswith(f"{start} "))
    return line.removeprefix(start).split()


def test_a_folder_of_images(folder, capsys):
    status, lines, errors = run(capsys, folder)
    assert (status, errors) == (0, [])
    assert "train      40           0  6 x 6           RGB 40  PNG 40" in [line.rstrip() for line in lines]
    assert "A run trains on 36 images, validates on 4 and tests on 20." in lines
    assert [row(lines, name) for name in ("ant", "bee", "cat", "dog")] == [["10", "5"]] * 4
    assert "4 classes with 10 training images each" in lines
    for kind in ("within train", "within test", "in train and test", "under two labels"):
        assert row(lines, kind) == ["0"]
    assert max(map(len, lines)) <= 80


def test_duplicates_within_and_across_splits_and_under_two_labels(folder, capsys):
    train, test = folder / "train", folder / "test"
    shutil.copy(train / "ant/000.png", test / "ant/copy.png")
    shutil.copy(train / "ant/001.png", train / "ant/copy.png")
    shutil.copy(train / "bee/010.png", train / "cat/copy.png")
    Image.open(train / "dog/030.png").save(test / "dog/other_format.bmp")  # the same pixels
    status, lines, _ = run(capsys, folder)
    assert status == 0
    counts = {kind: row(lines, kind) for kind in ("within train", "within test", "in train and test")}
    assert counts == {"within train": ["2"], "within test": ["0"], "in train and test": ["2"]}
    assert row(lines, "under two labels") == ["2"]
    text = " ".join(lines)
    assert f"under two labels: {train / 'bee/010.png'} (bee), {train / 'cat/copy.png'} (cat)" in text
    assert f"in train and test: {train / 'dog/030.png'} (dog), {test / 'dog/other_format.bmp'} (dog)" in text
    assert not any(line.startswith("within train: ") for line in run(capsys, folder, "--examples", 0)[1])


def test_an_image_in_grey_equals_the_same_image_in_colour(tmp_path, capsys):
    grey = np.random.default_rng(0).integers(0, 255, (40, 6, 6), dtype=np.uint8)
    write_folder(tmp_path / "train", grey, np.arange(40) % 4)
    write_folder(tmp_path / "test", grey[..., None].repeat(3, axis=-1), np.arange(40) % 4)
    status, lines, _ = run(capsys, tmp_path)
    assert (status, row(lines, "in train and test")) == (0, ["40"])
    assert "L 40" in lines[2] and "RGB 40" in lines[3]


@pytest.mark.parametrize("layout", ["clone", "save_to_disk", "arrays"])
def test_other_layouts(tmp_path, capsys, layout):
    if layout == "clone":
        write(tmp_path / "data/train-00000-of-00001.parquet", ARROW)
    elif layout == "save_to_disk":
        save_dict_to_disk(tmp_path / "saved", train=ARROW)
    else:
        write_arrays(tmp_path, np.arange(16, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2), np.array(LABELS))
    status, lines, errors = run(capsys, tmp_path / "saved" if layout == "save_to_disk" else tmp_path)
    assert (status, errors) == (0, [])
    assert row(lines, "train")[:5] == ["16", "0", "4", "x", "4"]
    assert row(lines, "within train") == ["0"]
    if layout != "arrays":
        assert any("images from column 'image' (Image), 2 classes from column 'label'" in line for line in lines)


def test_the_options_of_columns(tmp_path, capsys):
    write(tmp_path / "train.parquet", image=PNGS, species=LABELS, weather=["rain", "sun"] * 8)
    status, lines, errors = run(capsys, tmp_path)
    assert (status, lines, len(errors)) == (1, [], 1) and "'species' (int64), 'weather' (string)" in errors[0]
    status, lines, _ = run(capsys, tmp_path, "--label-column", "weather")
    assert (status, row(lines, "sun")) == (0, ["8"])


def test_unreadable_images_and_skip_corrupt(folder, capsys):
    (folder / "train/ant/000.png").write_bytes(b"no image")
    status, lines, errors = run(capsys, folder)
    assert status == 1 and row(lines, "train")[:2] == ["40", "1"]
    (error,) = errors
    assert error.startswith(f"error: cannot read image {folder / 'train/ant/000.png'}: ")
    assert error.endswith("(1 unreadable in all, which skip_corrupt leaves out)")
    status, lines, _ = run(capsys, folder, "--skip-corrupt")
    assert status == 0 and "A run trains on 35 images, validates on 4 and tests on 20." in lines


def test_images_of_several_sizes_need_an_image_size(folder, capsys):
    Image.new("RGB", (9, 7)).save(folder / "train/ant/000.png")
    status, lines, errors = run(capsys, folder)
    assert status == 1 and "6-7 x 6-9 (2 sizes)" in " ".join(lines)
    assert errors == [
        "error: images: expected one size, got 2 from 6x6 to 7x9 (height x width); set image_size to resize all images"
    ]
    assert run(capsys, folder, "--image-size", 6)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--train-images", 41], "train_images: expected 4 (one per class) to 40"),
        (["--normalisation", "published"], "has no published statistics"),
        (["--max-images", 0], "max_images: expected an integer >= 1, got 0"),
        (["--augmentation", "crops"], "augmentation: did you mean crop"),
    ],
)
def test_what_training_would_refuse(folder, capsys, arguments, part):
    status, _, errors = run(capsys, folder, *arguments)
    assert (status, len(errors)) == (1, 1) and errors[0].startswith("error: ") and part in errors[0]


def test_data_that_is_missing_is_one_line(tmp_path, capsys):
    status, lines, errors = run(capsys, tmp_path / "nothing")
    assert (status, lines, len(errors)) == (1, [], 1) and "expected a known name" in errors[0]


def test_a_table_without_rows(tmp_path, capsys):
    write(tmp_path / "train.parquet", table(image=PNGS, label=["cat", "dog"] * 8).slice(0, 0))
    status, _, errors = run(capsys, tmp_path)
    assert status == 1 and errors == [f"error: {tmp_path}: expected at least two classes, got []"]


def test_limits_on_images_and_classes(folder, capsys):
    (folder / "train/dog/039.png").unlink()
    status, lines, _ = run(capsys, folder, "--max-images", 15, "--max-classes", 1)
    assert status == 0 and "RGB 15" in lines[2]
    assert "The first 15 images of each split were decoded." in lines
    assert "A run trains on 35 images, validates on 4 and tests on 20." in lines
    assert "Classes not shown: 3, with 9 to 10 training images each" in lines
    assert "4 classes with 9 to 10 training images each: the largest has 1.11 times as many as the smallest" in lines


def test_names_of_classes_are_shown_as_text(tmp_path, capsys):
    names = ["[bold]x" if label else "a\x1b[31m" + "b" * 100 for label in LABELS]
    write(tmp_path / "train.parquet", image=PNGS, label=names)
    status, lines, _ = run(capsys, tmp_path)
    assert status == 0 and "\x1b" not in "".join(lines)
    assert row(lines, "[bold]x") == ["8"] and any(line.startswith("a\\x1b[31mbbb") for line in lines)


def test_digits(capsys):
    status, lines, _ = run(capsys, "digits")
    assert status == 0 and row(lines, "train")[:1] == ["1,797"]
    assert "A run trains on 1,294 images, validates on 144 and tests on 359." in lines
