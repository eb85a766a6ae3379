"""NumPy files that do not hold what their header says, and names of array files."""

import io
import os
import pickle

import numpy as np
import pytest
import torch

from oekd_fast.data import DataError, load_dataset
from oekd_fast.data.readers import npy
from oekd_fast.data.readers.npy import NpyFile

from ...support.image_files import assert_load_fails, assert_same_data, write_arrays
from ...support.open_files import open_files


def npy_file(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin1") + b"\n"
    length = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + text + data


def header(descr: str = "'|u1'", order: str = "False", shape: str = "(2, 2)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


@pytest.fixture(params=[True, False], ids=["preadv", "no preadv"])
def preadv(request, monkeypatch):
    """Read with `os.preadv` and as on a system that lacks it."""
    if request.param and not hasattr(os, "preadv"):
        pytest.skip("this system has no os.preadv")
    monkeypatch.setattr(npy, "_HAS_PREADV", request.param)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">i4"])
def test_an_array_is_read_as_numpy_loads_it(tmp_path, order, dtype, preadv):
    array = np.asarray(np.arange(120).reshape(10, 3, 4), dtype=dtype, order=order)
    np.save(tmp_path / "x.npy", array)
    file = NpyFile(tmp_path / "x.npy")
    assert file.shape == array.shape and file.dtype == array.dtype
    assert np.array_equal(file.read_all(), array) and file.read_all().dtype == array.dtype
    for rows in ([], [3], range(10), [9, 8, 7], [4, 5, 6, 6, 7, 0, 1], [2, 2, 2]):
        index = np.array(rows, dtype=np.int64)
        assert np.array_equal(file.read(index), array[index]) and file.read(index).dtype == array.dtype


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (1,)])
def test_arrays_without_elements_or_dimensions_are_read(tmp_path, shape):
    np.save(tmp_path / "x.npy", np.ones(shape))
    assert np.array_equal(NpyFile(tmp_path / "x.npy").read_all(), np.ones(shape))


def test_the_file_is_closed_with_the_array(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3))
    file = NpyFile(tmp_path / "x.npy")
    assert str(tmp_path / "x.npy") in open_files()
    del file
    with pytest.raises(DataError):
        NpyFile(tmp_path / "missing.npy")
    (tmp_path / "x.npy").write_bytes(b"damaged")
    with pytest.raises(DataError):
        NpyFile(tmp_path / "x.npy")
    assert str(tmp_path / "x.npy") not in open_files()


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_that_another_process_truncates_is_one_line(tmp_path, labelled, order, preadv):
    """A mapped file would end the process with SIGBUS."""
    images, labels = labelled
    write_arrays(tmp_path, np.asarray(images, order=order), labels)
    path = tmp_path / "train.images.npy"
    train = load_dataset(str(tmp_path), stream=True).train
    if order == "C":
        assert torch.equal(train.gather(torch.tensor([1])), train.gather(torch.tensor([1])))
    os.truncate(path, path.stat().st_size - images.nbytes // 2)
    with pytest.raises(DataError, match=rf"^{path}: the file was truncated while in use; [\d,]+ bytes are missing$"):
        train.gather(torch.arange(len(train)))


def test_a_file_that_is_truncated_between_header_and_content_is_one_line(tmp_path, labelled, monkeypatch, preadv):
    images, labels = labelled
    write_arrays(tmp_path, images, labels)
    path = tmp_path / "train.images.npy"
    read_all = NpyFile.read_all  # of the labels, after both headers were read

    def truncating(file):
        os.truncate(path, 1000)
        return read_all(file)

    monkeypatch.setattr(NpyFile, "read_all", truncating)
    assert_load_fails(tmp_path, "train.images.npy: the file was truncated while in use")


def test_a_file_that_is_replaced_is_read_on(tmp_path, labelled):
    images, labels = labelled
    write_arrays(tmp_path, images, labels)
    train = load_dataset(str(tmp_path), stream=True).train
    before = train.gather(torch.arange(len(train)))
    os.replace(tmp_path / "train.labels.npy", tmp_path / "train.images.npy")
    assert torch.equal(train.gather(torch.arange(len(train))), before)


def test_an_array_in_the_order_of_columns_that_does_not_fit_in_memory_is_refused(tmp_path, labelled, monkeypatch):
    images, labels = labelled
    write_arrays(tmp_path, np.asfortranarray(images), labels)
    monkeypatch.setattr(npy, "available_memory", lambda: images.nbytes - 1)
    with pytest.raises(
        DataError, match="train.images.npy: expected an array in the order of rows, as numpy.asc.*got one"
    ):
        load_dataset(str(tmp_path), stream=True).train.gather(torch.tensor([0]))


@pytest.mark.parametrize(
    ("contents", "parts"),
    [
        (b"", "cannot read .*x.npy: "),
        (b"PK\x03\x04 an archive", "cannot read .*x.npy: the magic string is not correct"),
        (npy_file(header(), b"abc"), r"x.npy: expected uint8 2 x 2 after the header, got 3 bytes$"),
        (npy_file(header(shape="(2**40,)")), "cannot read "),
        (npy_file(header(shape=f"({2**62}, {2**62})"), b"abcd"), "after the header, got 4 bytes$"),
        (npy_file(header(shape="(-2, -2)"), b"abcd"), "expected uint8 -2 x -2 after the header, got 4 bytes$"),
        (npy_file(header(shape=f"(0, {2**63})")), "cannot read "),
        (npy_file(header(shape="(2.0,)"), b"abcd"), "cannot read "),
        (npy_file(header(descr="'|O'"), pickle.dumps([1])), "x.npy: expected numbers, got Python objects, which"),
        (npy_file(header(descr="[('a', '|O')]"), b"1234"), "x.npy: expected numbers, got Python objects, which"),
        (npy_file(header(descr="'nonsense'")), "cannot read "),
        (npy_file("{" * 500), "cannot read "),
        (npy_file("(" * 9000), "cannot read "),
        (npy_file(" " * 20_000 + header()), "cannot read "),
        (npy_file(header(), b"abcd", (3, 0)), "x.npy: expected a file of format 1.0 or 2.0, got 3.0$"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", "cannot read "),
    ],
)
def test_damaged_and_crafted_files_are_one_line(tmp_path, contents, parts):
    (tmp_path / "x.npy").write_bytes(contents)
    with pytest.raises(DataError, match=parts) as caught:
        NpyFile(tmp_path / "x.npy")
    assert "\n" not in str(caught.value)


def test_an_array_of_objects_is_not_unpickled(tmp_path, labelled):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    images, labels = labelled
    write_arrays(tmp_path, images, labels)
    buffer = io.BytesIO()
    np.save(buffer, np.array([Harm()], dtype=object), allow_pickle=True)
    (tmp_path / "train.labels.npy").write_bytes(buffer.getvalue())
    assert_load_fails(tmp_path, "train.labels.npy: expected numbers, got Python objects, which are never loaded")
    assert not (tmp_path / "harm").exists()


def test_a_fifo_instead_of_an_array_is_refused(tmp_path, labelled):
    write_arrays(tmp_path, *labelled)
    (tmp_path / "train.labels.npy").unlink()
    os.mkfifo(tmp_path / "train.labels.npy")
    assert_load_fails(tmp_path, "train.labels.npy: expected a regular file, got a FIFO")


def test_splits_of_arrays_are_found_by_any_usual_name(tmp_path, labelled):
    images, labels = labelled
    for plain, other in (("train", "Training"), ("test", "dev")):
        write_arrays(tmp_path / "plain", images, labels, plain)
        write_arrays(tmp_path / "other", images, labels, other)
    data = load_dataset(str(tmp_path / "other"))
    assert_same_data(data, load_dataset(str(tmp_path / "plain")))
    assert data.notes == (f"{tmp_path / 'other'}: splits: train from 'Training', test from 'dev'",)
    write_arrays(tmp_path / "other", images, labels, "val")
    assert_load_fails(tmp_path / "other", "expected one validation split, got 'dev', 'val'")


@pytest.mark.parametrize("stream", [False, True])
def test_the_pixels_of_an_image_of_an_array_are_limited(tmp_path, stream):
    for shape, found in (((2, 0, 3), "0 x 3"), ((2, 2**20, 2**20), "1048576 x 1048576")):
        file = npy_file(header(shape=str(shape)))
        (tmp_path / "train.images.npy").write_bytes(file)
        os.truncate(tmp_path / "train.images.npy", len(file) + int(np.prod(shape)))
        np.save(tmp_path / "train.labels.npy", np.arange(2))
        assert_load_fails(tmp_path, f"expected images of 1 to 178,956,970 pixels, got {found}", stream=stream)


def test_an_array_that_does_not_fit_in_memory_is_streamed_or_refused(tmp_path, labelled, monkeypatch):
    write_arrays(tmp_path, *labelled)
    monkeypatch.setattr("oekd_fast.data.memory.available_memory", lambda: 40 * 6 * 6)
    assert_load_fails(tmp_path, "got 40 images of 3 x 6 x 6 bytes", "set stream=True (--data-placement stream)")
    assert len(load_dataset(str(tmp_path), stream=True).train) == 29


def test_an_image_size_above_the_limit_of_pixels_is_refused(tmp_path, labelled):
    write_arrays(tmp_path, *labelled)
    assert_load_fails(tmp_path, "at most 178,956,970 pixels, got 99999", image_size=99999)
