"""NumPy files that do not hold what their header says, and names of array files."""

import io
import os
import pickle

import numpy as np
import pytest

from oekd_fast.data import DataError, load_dataset
from oekd_fast.data.readers.npy import map_npy

from ...support.image_files import assert_load_fails, assert_same_data, write_arrays


def npy_file(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin1") + b"\n"
    length = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + text + data


def header(descr: str = "'|u1'", order: str = "False", shape: str = "(2, 2)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">i4"])
def test_an_array_is_mapped_as_numpy_loads_it(tmp_path, order, dtype):
    array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)
    np.save(tmp_path / "x.npy", array)
    mapped = map_npy(tmp_path / "x.npy")
    assert np.array_equal(mapped, array) and mapped.dtype == array.dtype and not mapped.flags.writeable


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
        map_npy(tmp_path / "x.npy")
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
