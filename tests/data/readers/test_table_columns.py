"""Which columns of a table hold the images and the labels, and what is read from them."""

import pytest
import torch

from oekd_fast.data import load_dataset

from ...support.image_files import assert_load_fails
from ...support.tables import LABELS, PNGS, class_names, pa, structs, table, write

NAMES = ["dog" if label else "cat" for label in LABELS]


def shades_and_labels(data) -> list[tuple[int, str]]:
    """Return the grey level and the class of each image of all splits, sorted."""
    splits = (data.train, data.validation, data.test)
    images, labels = (torch.cat([getattr(split, name) for split in splits]) for name in ("images", "labels"))
    return sorted((int(image[0, 0, 0]), data.classes[label]) for image, label in zip(images, labels, strict=True))


LABEL_COLUMNS = {
    "integers": (LABELS, {0: "0", 1: "1"}),
    "small integers": (pa.array(LABELS, pa.uint8()), {0: "0", 1: "1"}),
    "unsigned integers": (pa.array(LABELS, pa.uint64()), {0: "0", 1: "1"}),
    "strings": (NAMES, {0: "cat", 1: "dog"}),
    "large strings": (pa.array(NAMES, pa.large_string()), {0: "cat", 1: "dog"}),
    "string views": (pa.array(NAMES, pa.string_view()), {0: "cat", 1: "dog"}),
    "a dictionary": (pa.array(NAMES[::-1])[::-1].dictionary_encode(), {0: "cat", 1: "dog"}),
    "a dictionary of integers": (pa.array(LABELS).dictionary_encode(), {0: "0", 1: "1"}),
    "bools": ([label == 0 for label in LABELS], {0: "True", 1: "False"}),
}


@pytest.mark.parametrize("kind", LABEL_COLUMNS)
def test_kinds_of_labels(tmp_path, kind):
    column, names = LABEL_COLUMNS[kind]
    data = load_dataset(str(write(tmp_path / "train.parquet", image=PNGS, label=column)))
    assert data.classes == tuple(sorted(names.values()))
    assert shades_and_labels(data) == [(row, names[label]) for row, label in enumerate(LABELS)]


IMAGE_COLUMNS = {
    "binary": pa.array(PNGS),
    "large binary": pa.array(PNGS, pa.large_binary()),
    "binary view": pa.array(PNGS, pa.binary_view()),
    "a dictionary": pa.array(PNGS).dictionary_encode(),
    "structs": structs(PNGS),
    "structs with a path that is not used": structs(PNGS, ["/etc/hostname"] * 16),
    "structs of views": pa.StructArray.from_arrays([pa.array(PNGS, pa.binary_view())], ["bytes"]),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", IMAGE_COLUMNS)
def test_kinds_of_images(tmp_path, kind, stream, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "data/train.parquet", image=IMAGE_COLUMNS[kind], label=NAMES)
    data = load_dataset(str(tmp_path / "data"), stream=stream)
    shades = sorted(
        int(image[0, 0, 0]) for split in (data.train, data.validation, data.test) for image in next(split.chunks())
    )
    assert shades == list(range(16))


def test_the_names_of_the_classes_are_those_of_the_training_split_in_every_split(tmp_path):
    write(tmp_path / "train.parquet", image=PNGS, label=NAMES)
    write(tmp_path / "test.parquet", image=PNGS[:3], label=pa.array(["dog", "dog", "cat"]).dictionary_encode())
    data = load_dataset(str(tmp_path))
    assert data.classes == ("cat", "dog") and data.test.labels.tolist() == [1, 1, 0]


def test_names_of_classes_are_stored_in_a_printable_form(tmp_path):
    write(tmp_path / "train.parquet", image=PNGS, label=[f"{name}\x1b" for name in NAMES])
    assert load_dataset(str(tmp_path)).classes == ("cat\\x1b", "dog\\x1b")
    write(tmp_path / "train.parquet", image=PNGS, label=["a\x1b", "a\\x1b"] * 8)
    assert_load_fails(tmp_path, "(train): expected different names of classes, got two that are written")


def test_names_of_classes_in_the_metadata_of_the_hub(tmp_path):
    arrow = table({"image": {"_type": "Image"}, "kind": class_names("zebra", "ant")}, image=structs(PNGS), kind=LABELS)
    assert load_dataset(str(write(tmp_path / "train.parquet", arrow))).classes == ("zebra", "ant")


# The choice

CHOICES = {
    "an index of pandas": ({"__index_level_0__": LABELS, "species": NAMES}, "species"),
    "ids": ({"id": LABELS, "image_id": LABELS, "idx": LABELS, "patient_id": LABELS, "species": NAMES}, "species"),
    "a number for each row": ({"number": list(range(16)), "species": NAMES}, "species"),
    "almost a number for each row": ({"number": [0, 0, *range(2, 16)], "species": NAMES}, "species"),
    "names of files": ({"source": [f"{row % 2}.png" for row in range(16)], "species": NAMES}, "species"),
    "one value in all rows": ({"part": ["train"] * 16, "camera": [1] * 16, "species": NAMES}, "species"),
    "sizes of the images": ({"width": LABELS, "height": LABELS, "species": NAMES}, "species"),
    "a column called label": ({"species": NAMES, "label": LABELS, "weather": LABELS}, "label"),
    "a fine and a coarse label": ({"coarse_label": NAMES, "fine_label": LABELS, "label": NAMES}, "fine_label"),
    "another case": ({"species": NAMES, "Label": LABELS}, "Label"),
    "a class id": ({"class_id": LABELS, "weather": NAMES}, "class_id"),
    "floats": ({"score": [0.5] * 16, "species": NAMES}, "species"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_label_column_is_chosen_by_name_and_values(tmp_path, case):
    columns, chosen = CHOICES[case]
    data = load_dataset(str(write(tmp_path / "train.parquet", image=PNGS, **columns)))
    assert data.num_classes == 2 and f"2 classes from column '{chosen}'" in data.notes[0]


def test_the_note_names_the_columns_their_types_and_the_rest(tmp_path):
    write(tmp_path / "train.parquet", image=PNGS, label=NAMES, width=[4] * 16)
    note = f"{tmp_path}: images from column 'image' (binary), 2 classes from column 'label' (string)"
    assert load_dataset(str(tmp_path)).notes == (f"{note}; other columns: 'width'",)


DOUBTS = {
    "two columns": ({"species": NAMES, "weather": LABELS}, ("got 'species', 'weather'; name it with label_column",)),
    "two usual names": ({"target": LABELS, "category": NAMES}, ("got 'target', 'category'; name it",)),
    "only ids": ({"id": LABELS, "uuid": NAMES}, ("expected a class label column, got the columns 'image' (binary)",)),
    "a label for each row": ({"label": list(range(16))}, ("got column 'label' with another value in each row",)),
    "several labels in a row": (
        {"label": [[label] for label in LABELS], "weather": NAMES},
        ("expected a class label column of integers, strings or bools", "'label' (list<", "'weather' (string)"),
    ),
    "floats": ({"label": [0.0, 1.0] * 8}, ("integers, strings or bools, got", "'label' (double)")),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_labels_in_doubt_are_refused_with_all_columns_and_types(tmp_path, case):
    columns, parts = DOUBTS[case]
    assert_load_fails(write(tmp_path / "train.parquet", image=PNGS, **columns), f"{tmp_path} (train): ", *parts)


def test_image_columns_in_doubt(tmp_path):
    write(tmp_path / "train.parquet", left=PNGS, right=PNGS, label=LABELS)
    assert_load_fails(tmp_path, "got 'left', 'right'; name it with image_column", "'left' (binary)", "'label' (int64)")
    write(tmp_path / "train.parquet", mask=structs(PNGS[::-1]), image=structs(PNGS), label=LABELS)
    assert "images from column 'image'" in load_dataset(str(tmp_path)).notes[0]
    write(tmp_path / "train.parquet", image=[[[1, 2], [3, 4]]] * 16, label=LABELS)
    assert_load_fails(tmp_path, "expected an image column, got the columns 'image' (list<")


def test_sound_has_the_fields_of_an_image_and_is_none(tmp_path):
    arrow = table({"sound": {"_type": "Audio"}}, sound=structs(PNGS), label=LABELS)
    assert_load_fails(write(tmp_path / "train.parquet", arrow), "expected an image column, got the columns 'sound'")


def test_a_wide_table_is_described_in_one_line(tmp_path):
    columns = {f"feature_{number}": LABELS for number in range(100)}
    error = assert_load_fails(write(tmp_path / "train.parquet", image=PNGS, **columns), "and 81 more")
    assert len(str(error)) < 3000


# The options


def test_the_options_name_the_columns(tmp_path):
    write(tmp_path / "train.parquet", left=PNGS, right=PNGS[::-1], species=NAMES, id=list(range(16)))
    data = load_dataset(str(tmp_path), image_column="right", label_column="species")
    assert shades_and_labels(data)[0] == (0, "dog") and data.classes == ("cat", "dog")
    assert load_dataset(str(tmp_path), image_column="left", label_column="species").classes == ("cat", "dog")
    for arguments, part in (
        ({"image_column": "middle"}, "expected an image column 'middle', got the columns 'left' (binary), "),
        ({"image_column": "id"}, "expected an image column 'id', got"),
        ({"image_column": "left", "label_column": "right"}, "expected a class label column 'right', got"),
    ):
        assert_load_fails(tmp_path, part, **arguments)


def test_the_options_replace_the_columns_of_a_known_data_set(tmp_path):
    write(tmp_path / "cifar10/train.parquet", image=PNGS, kind=NAMES)
    assert_load_fails("cifar10", "expected an image column 'img'", data_dir=tmp_path)
    assert load_dataset("cifar10", data_dir=tmp_path, image_column="image", label_column="kind").classes == (
        "cat",
        "dog",
    )


# Labels that cannot be read


@pytest.mark.parametrize(
    ("split", "labels", "part"),
    [
        ("train", [*LABELS[:15], None], "expected a label in every row of column 'label', got none in row 15"),
        ("train", [*NAMES[:15], None], "expected a label in every row of column 'label', got none in row 15"),
        ("train", [*NAMES[:15], ""], "expected a label in every row of column 'label', got none in row 15"),
        ("train", [0, -1, *LABELS[2:]], "expected a label >= 0, got -1 in row 1 of column 'label'"),
        ("train", [*LABELS[:14], 3, 3], "expected labels that count from 0 without gaps, got 3 but no 2"),
        ("train", pa.array([2**64 - 1, *LABELS[1:]], pa.uint64()), "got 18446744073709551615 in row 0"),
        ("train", [*NAMES[:14], "x" * 2000, "x" * 2000], "expected labels of at most 1000 characters, got 2000"),
        ("test", [*LABELS[:15], 2], "expected labels in [0, 2), got 2 in row 15 of column 'label'"),
        ("test", NAMES, "expected the column 'label' (int64) of train, got 'label' (string)"),
    ],
)
def test_labels_that_cannot_be_read_are_named_by_row(tmp_path, split, labels, part):
    write(tmp_path / "train.parquet", image=PNGS, label=LABELS)
    write(tmp_path / f"{split}.parquet", image=PNGS, label=labels)
    assert_load_fails(tmp_path, part)


def test_a_label_that_train_does_not_have(tmp_path):
    write(tmp_path / "train.parquet", image=PNGS, label=NAMES)
    write(tmp_path / "test.parquet", image=PNGS[:2], label=["cat", "cow\n"])
    assert_load_fails(tmp_path, "(test): expected labels of train, got 'cow\\n' in row 1 of column 'label'")


def test_a_label_outside_the_names_of_the_metadata(tmp_path):
    arrow = table({"label": class_names("a", "b")}, image=PNGS, label=[*LABELS[:15], 2])
    assert_load_fails(write(tmp_path / "train.parquet", arrow), "expected labels in [0, 2), got 2 in row 15")


def test_more_rows_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("oekd_fast.data.readers.labels.MAX_ROWS", 15)
    assert_load_fails(write(tmp_path / "train.parquet", image=PNGS, label=LABELS), "expected at most 15 rows, got 16")


@pytest.mark.parametrize("value", [b"{", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": 7}}}'])
def test_damaged_metadata_is_refused_or_ignored(tmp_path, value):
    arrow = table(image=PNGS, label=LABELS).replace_schema_metadata({b"huggingface": value})
    write(tmp_path / "train.parquet", arrow)
    if value == b"{":
        assert_load_fails(tmp_path, "(train): expected JSON in the metadata 'huggingface', got JSONDecodeError")
    else:
        assert load_dataset(str(tmp_path)).classes == ("0", "1")
