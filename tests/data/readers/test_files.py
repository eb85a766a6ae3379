"""Only regular files of limited size are opened; what else a path may lead to is named."""

import os

import pytest

from oekd_fast.data import DataError
from oekd_fast.data.readers.files import open_regular

from ...support.open_files import open_files


def test_a_regular_file_and_a_link_to_it_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name, max_bytes=3) as file:
            assert file.read() == b"abc"


def test_a_larger_file_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"abcd")
    with pytest.raises(DataError, match="file: expected at most 3 bytes, got 4$"):
        open_regular(tmp_path / "file", max_bytes=3)


@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a character device"])
def test_other_kinds_of_files_are_named_without_waiting(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=f"x: expected a regular file, got {kind}$"):
        open_regular(path)
    assert str(path.resolve()) not in open_files()


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")
