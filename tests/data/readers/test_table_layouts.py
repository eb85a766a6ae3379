"""Tables in the layouts that the hub, `datasets` and other tools write."""

import json
import os

import pytest
import torch

from oekd_fast.data import DataError, load_dataset
from oekd_fast.data.readers import saved_to_disk

from ...support.image_files import assert_load_fails, assert_same_data
from ...support.tables import LABELS, PNGS, class_names, save_dict_to_disk, save_to_disk, structs, table, write

ARROW = table({"image": {"_type": "Image"}, "label": class_names("cat", "dog")}, image=structs(PNGS), label=LABELS)
LAYOUTS = {
    "files beside each other": ("train.parquet", "test.parquet"),
    "numbered files": ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
    "numbered files with a hash": ("train-00000-of-00001-a09b74b3ef9c3b56.parquet", "test-00000-of-00001-0b74.parquet"),
    "other names": ("Training.parquet", "testing_0.parquet"),
    "a common beginning": ("pets_train.parquet", "pets_test.parquet"),
    "a clone": ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    "a clone with one config": ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
    "a converted clone": ("default/train/0000.parquet", "default/test/0000.parquet"),
    "folders of splits": ("train/0000.parquet", "test/0000.parquet"),
    "folders of splits with names": ("train/train-0.parquet", "test/test-0.parquet"),
    "folders of Spark": ("train.parquet/part-0000.snappy.parquet", "test.parquet/part-0000.snappy.parquet"),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    root = tmp_path_factory.mktemp("expected")
    write(root / "train.parquet", ARROW)
    write(root / "test.parquet", ARROW.slice(0, 6))
    return load_dataset(str(root))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_parquet_files(tmp_path, layout, expected):
    train, test = LAYOUTS[layout]
    write(tmp_path / train, ARROW)
    write(tmp_path / test, ARROW.slice(0, 6))
    (tmp_path / "README.md").write_text("---\n---\n")
    (tmp_path / ".git/data").mkdir(parents=True)
    (tmp_path / ".git/data/train.parquet").write_bytes(b"")
    data = load_dataset(str(tmp_path))
    assert_same_data(data, expected)
    assert data.classes == ("cat", "dog")


def test_files_of_one_split_are_read_in_order(tmp_path):
    for index in range(4):
        write(tmp_path / f"data/train-{index:05d}-of-00004.parquet", ARROW.slice(4 * index, 4))
    data = load_dataset(str(tmp_path), validation_fraction=0.2)
    whole = load_dataset(str(write(tmp_path / "one/train.parquet", ARROW)), validation_fraction=0.2)
    assert_same_data(data, whole)


def test_a_missing_numbered_file_is_an_error(tmp_path):
    for index in (0, 2):
        write(tmp_path / f"data/train-{index:05d}-of-00003.parquet", ARROW)
    assert_load_fails(tmp_path, "expected 3 files train-*-of-00003.parquet, got 2; train-00001-of-00003.parquet is")


def test_several_configs_are_refused_by_name_and_one_can_be_named(tmp_path, expected):
    for config in ("full_numbers", "cropped_digits"):
        write(tmp_path / config / "train-00000-of-00001.parquet", ARROW)
        write(tmp_path / config / "test-00000-of-00001.parquet", ARROW.slice(0, 6))
    assert_load_fails(
        tmp_path,
        "expected parquet files of one config, got 'cropped_digits', 'full_numbers'; name the folder of one, ",
        str(tmp_path / "cropped_digits"),
    )
    assert_same_data(load_dataset(str(tmp_path / "full_numbers")), expected)
    assert_same_data(load_dataset("svhn", data_dir=tmp_path), expected)  # its config is known


def test_files_in_the_folder_come_before_those_in_its_folders(tmp_path):
    write(tmp_path / "train.parquet", ARROW)
    write(tmp_path / "backup/train.parquet", ARROW)
    notes = load_dataset(str(tmp_path)).notes
    assert notes[0] == f"{tmp_path}: the parquet files in the folders 'backup' beside it are not read"


def test_a_folder_of_another_data_set_is_not_taken_for_a_known_one(tmp_path):
    write(tmp_path / "mnist/train.parquet", ARROW)
    assert_load_fails("fashion_mnist", "expected a folder 'fashion_mnist' or train-*.parquet", data_dir=tmp_path)


def test_a_split_that_is_not_read_is_said(tmp_path):
    write(tmp_path / "train.parquet", ARROW)
    write(tmp_path / "extra.parquet", ARROW)
    assert load_dataset(str(tmp_path)).notes[0].endswith("ignored: 'extra'")


def test_a_file_without_the_name_of_a_split_is_the_training_split(tmp_path):
    assert load_dataset(str(write(tmp_path / "0000.parquet", ARROW))).classes == ("cat", "dog")


def test_a_table_beside_class_folders_is_not_the_data(tmp_path, labelled):
    from ...support.image_files import CLASSES, write_folder

    write_folder(tmp_path, *labelled)
    write(tmp_path / "embeddings.parquet", ARROW)
    assert load_dataset(str(tmp_path)).classes == CLASSES


def test_a_clone_without_its_large_files_says_how_to_get_them(tmp_path):
    (tmp_path / "data").mkdir()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "data/train-00000-of-00001.parquet").write_text(pointer)
    assert_load_fails(tmp_path, "train-00000-of-00001.parquet: the file is a Git LFS pointer", "git lfs pull")


# save_to_disk


@pytest.mark.parametrize("stream", [False, True])
def test_a_saved_dict_of_splits(tmp_path, stream, expected, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)  # it may be absent
    save_dict_to_disk(tmp_path / "saved", train=ARROW, test=ARROW.slice(0, 6))
    data = load_dataset(str(tmp_path / "saved"), stream=stream)
    assert data.classes == ("cat", "dog")
    for name in ("train", "validation", "test"):
        split, wanted = getattr(data, name), getattr(expected, name)
        assert torch.equal(torch.cat(list(split.chunks())), wanted.images) and torch.equal(split.labels, wanted.labels)


def test_a_saved_table_is_the_training_split(tmp_path):
    save_to_disk(tmp_path / "saved", ARROW)
    write(tmp_path / "parquet/train.parquet", ARROW)
    assert_same_data(load_dataset(str(tmp_path / "saved")), load_dataset(str(tmp_path / "parquet")))


def test_what_datasets_saves_is_read(tmp_path, expected):
    datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")
    rows = datasets.Dataset(ARROW)
    splits = datasets.DatasetDict({"train": rows, "test": rows.select(range(6))})
    splits.save_to_disk(tmp_path / "saved", num_shards={"train": 3, "test": 1})
    assert_same_data(load_dataset(str(tmp_path / "saved")), expected)


@pytest.mark.parametrize("name", ["../train.arrow", "/etc/hostname", "a/b.arrow", "..", "", 7])
def test_names_of_saved_files_stay_in_the_folder(tmp_path, name):
    save_to_disk(tmp_path / "saved", ARROW)
    (tmp_path / "saved/state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    assert_load_fails(tmp_path / "saved", "state.json: expected names without folders in '_data_files', got ")


def test_names_of_saved_splits_stay_in_the_folder(tmp_path):
    save_dict_to_disk(tmp_path / "saved", train=ARROW)
    (tmp_path / "saved/dataset_dict.json").write_text(json.dumps({"splits": ["train", "../test"]}))
    assert_load_fails(
        tmp_path / "saved", "dataset_dict.json: expected names without folders in 'splits', got '../test'"
    )


def test_saved_folders_that_are_damaged(tmp_path):
    save_dict_to_disk(tmp_path, train=ARROW)
    state = tmp_path / "train/state.json"
    for text, part in (("[", "expected JSON with a list '_data_files'"), ('{"_data_files": []}', "got none")):
        state.write_text(text)
        assert_load_fails(tmp_path, "state.json", part)
    state.unlink()
    assert_load_fails(tmp_path, f"cannot read {state}: No such file or directory")


def test_a_selection_of_rows_that_older_versions_saved_is_refused(tmp_path):
    save_to_disk(tmp_path / "saved", ARROW)
    state = tmp_path / "saved/state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"_indices_data_files": [{"filename": "i.arrow"}]}))
    assert_load_fails(tmp_path / "saved", "state.json: expected all rows, got a selection; save the data with")


def test_a_file_that_another_process_truncates_is_one_line(tmp_path):
    """Reading a page that the file no longer has would end the process with SIGBUS."""
    save_to_disk(tmp_path / "saved", ARROW)
    (file,) = (tmp_path / "saved").glob("*.arrow")
    train = load_dataset(str(tmp_path / "saved"), stream=True).train
    before = train.gather(torch.arange(len(train)))
    content = file.read_bytes()
    os.truncate(file, len(content) - 1)
    with pytest.raises(DataError, match=f"^{file}: the file was truncated while in use; 1 bytes are missing$"):
        train.gather(torch.tensor([0]))
    file.write_bytes(content)
    assert torch.equal(train.gather(torch.arange(len(train))), before)
    (tmp_path / "shorter").write_bytes(b"")
    os.replace(tmp_path / "shorter", file)  # the map keeps the old file
    assert torch.equal(train.gather(torch.arange(len(train))), before)
    file.unlink()
    assert torch.equal(train.gather(torch.arange(len(train))), before)


def test_a_file_that_is_truncated_while_it_is_loaded_is_one_line(tmp_path, monkeypatch):
    save_to_disk(tmp_path / "saved", ARROW)
    (file,) = (tmp_path / "saved").glob("*.arrow")

    def truncating(shard, *arguments):
        os.truncate(file, 100)
        return checked(shard, *arguments)

    checked = saved_to_disk._checked
    monkeypatch.setattr(saved_to_disk, "_checked", truncating)
    assert_load_fails(tmp_path / "saved", f"{file}: the file was truncated while in use")
