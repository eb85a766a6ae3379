"""Paths in the cells of a table, and files that cannot be tables."""

import os

import pytest

from oekd_fast.data import load_dataset

from ...support.image_files import assert_load_fails
from ...support.tables import LABELS, PNGS, pa, save_to_disk, structs, table, write


@pytest.fixture
def folder(tmp_path):
    """A folder with images in `pictures`, beside a folder with the same images."""
    for place in ("data/pictures", "outside"):
        (tmp_path / place).mkdir(parents=True)
        for row, content in enumerate(PNGS):
            (tmp_path / place / f"{row}.png").write_bytes(content)
    return tmp_path / "data"


PATHS = [f"pictures/{row}.png" for row in range(16)]
FORMS = {
    "structs": lambda paths: structs([None] * len(paths), paths),
    "structs without bytes": lambda paths: pa.StructArray.from_arrays([pa.array(paths)], ["path"]),
    "strings": lambda paths: pa.array(paths),
}


@pytest.mark.parametrize("form", FORMS)
def test_paths_start_from_the_folder_of_the_table(folder, form, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write(folder / "train.parquet", image=FORMS[form](PATHS), label=LABELS)
    data = load_dataset(str(folder))
    assert sorted(int(image[0, 0, 0]) for image in data.train.images) == sorted(
        {*range(16)} - {int(image[0, 0, 0]) for split in (data.validation, data.test) for image in split.images}
    )


def test_streamed_paths(folder, monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(folder / "train.parquet", image=FORMS["structs"](PATHS), label=LABELS)
    assert len(next(load_dataset(str(folder), stream=True).train.chunks())) == 12


def test_paths_of_a_saved_table(folder):
    save_to_disk(folder / "saved", table(image=FORMS["strings"](PATHS), label=LABELS))
    (folder / "pictures").rename(folder / "saved/pictures")
    assert load_dataset(str(folder / "saved")).num_classes == 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "path",
    ["../outside/0.png", "pictures/../../outside/0.png", "{tmp}/outside/0.png", "/dev/zero", "a\0b.png", "~/0.png"],
)
def test_paths_that_leave_the_folder_are_refused(folder, form, path, tmp_path):
    path = path.replace("{tmp}", str(tmp_path))
    write(folder / "train.parquet", image=FORMS[form]([path, *PATHS[1:]]), label=LABELS)
    if path.startswith("~"):  # not expanded
        assert_load_fails(folder, "No such file", image_column="image")
    else:
        assert_load_fails(folder, "image in row 0 of", "relative and without links that leave it", image_column="image")


def test_links_that_leave_the_folder_are_refused_and_others_followed(folder, tmp_path):
    write(folder / "train.parquet", image=FORMS["strings"](PATHS), label=LABELS)
    (folder / "pictures").rename(folder / "moved")
    (folder / "pictures").symlink_to("moved")
    assert load_dataset(str(folder)).num_classes == 2
    (folder / "pictures").unlink()
    (folder / "pictures").symlink_to(tmp_path / "outside")
    assert_load_fails(folder, "relative and without links that leave it, got 'pictures/0.png'")


def test_the_folder_itself_may_be_a_link(folder, tmp_path):
    write(folder / "train.parquet", image=FORMS["strings"](PATHS), label=LABELS)
    (tmp_path / "link").symlink_to(folder)
    assert load_dataset(str(tmp_path / "link")).num_classes == 2


def test_a_path_of_a_missing_file_and_of_a_fifo(folder):
    write(folder / "train.parquet", image=FORMS["structs"](PATHS), label=LABELS)
    (folder / "pictures/3.png").unlink()
    assert_load_fails(folder, "pictures/3.png in row 3 of", "No such file")
    os.mkfifo(folder / "pictures/3.png")
    assert_load_fails(folder, "3.png", "expected a regular file, got a FIFO")


def test_a_table_that_is_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "train.parquet")
    assert_load_fails(tmp_path, f"{tmp_path / 'train.parquet'}: expected a regular file, got a FIFO")


@pytest.mark.parametrize("length", [0, 3, 100, 700])
def test_truncated_files(tmp_path, length):
    save_to_disk(tmp_path / "saved", table(image=PNGS, label=LABELS))
    path = next((tmp_path / "saved").glob("*.arrow"))
    path.write_bytes(path.read_bytes()[:length])
    assert_load_fails(tmp_path / "saved", f"cannot read {path}: ")
    write(tmp_path / "parquet/train.parquet", image=PNGS, label=LABELS)
    path = tmp_path / "parquet/train.parquet"
    path.write_bytes(path.read_bytes()[:length])
    assert_load_fails(tmp_path / "parquet", f"cannot read {path}: ")


def test_offsets_that_leave_the_file_are_refused(tmp_path):
    # pyarrow itself checks the first and the last offset only.
    offsets = pa.array([0, 2**30, *range(2, 17)], pa.int32()).buffers()[1]
    broken = pa.Array.from_buffers(pa.binary(), 16, [None, offsets, pa.py_buffer(bytes(16))])
    for stream in (False, True):
        save_to_disk(tmp_path / str(stream), table(image=broken, label=LABELS))
        assert_load_fails(tmp_path / str(stream), "cannot read ", "data-00000-of-00001.arrow: ", stream=stream)


def test_paths_of_hub_data_lie_in_the_cache_of_the_hub(folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")
    paths = [str(tmp_path / "outside" / f"{row}.png") for row in range(16)]
    rows = datasets.Dataset(table({"image": {"_type": "Image"}}, image=structs([None] * 16, paths), label=LABELS))
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments: {"train": rows})
    assert_load_fails("someone/insects", "image in row 0 of someone/insects (train): ", "a path in the cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "outside")
    assert load_dataset("someone/insects").num_classes == 2
