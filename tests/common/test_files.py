"""Atomic writes, appends, reads and folders under faults: full disks, links, special files, kills."""

import errno
import os
import threading

import pytest

from oekd_fast.common import files
from oekd_fast.common.files import (
    append_durably,
    make_folder_below,
    read_regular,
    remove_temporary_files,
    sync_folder,
    target_of_temporary,
    write_atomically,
    write_temporary,
)


def failing(monkeypatch, function, code=errno.ENOSPC):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, function, fail)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("function", ["open", "write", "fsync", "replace"])
def test_write_atomically_replaces_a_file_or_keeps_it_unchanged(tmp_path, monkeypatch, function):
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    with monkeypatch.context() as patch:
        failing(patch, function)
        with pytest.raises(OSError, match=r"No space left on device: '.*/summary\.json'"):
            write_atomically(path, b"newer")
    assert path.read_bytes() == b"new" and names(tmp_path) == ["summary.json"]


def test_partial_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(files.os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    write_atomically(tmp_path / "a", b"0123456789")
    append_durably(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == 2 * b"0123456789"


def test_two_writers_of_one_file_use_two_temporary_files(tmp_path):
    temporary = [write_temporary(tmp_path / "a", content) for content in (b"1", b"2")]
    assert [path.read_bytes() for path in temporary] == [b"1", b"2"]
    assert [target_of_temporary(path.name) for path in temporary] == ["a", "a"]
    assert target_of_temporary("a.tmp") is None and target_of_temporary("a") is None
    (tmp_path / "b.tmp").write_text("mine")
    remove_temporary_files(tmp_path)
    assert names(tmp_path) == ["b.tmp"]


def test_a_link_is_replaced_and_not_followed(tmp_path):
    outside, link = tmp_path / "outside", tmp_path / "link"
    outside.write_text("mine")
    link.symlink_to(outside)
    with pytest.raises(OSError, match=rf"'{link}'"):
        append_durably(link, b"x")
    write_atomically(link, b"new")
    assert outside.read_text() == "mine" and link.read_text() == "new" and not link.is_symlink()


def test_a_failed_append_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    path, written = tmp_path / "metrics.jsonl", []
    append_durably(path, b"first\n")
    write = os.write

    def full(descriptor, data):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(write(descriptor, data[:3]))
        return 3

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
            append_durably(path, b"second\n")
    assert path.read_bytes() == b"first\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs os.mkfifo")
def test_special_files_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = threading.Event()

    def attempt():
        for path in (tmp_path / "pipe", tmp_path):
            with pytest.raises(OSError, match=f"'{path}'"):
                read_regular(path)
            with pytest.raises(OSError, match=f"'{path}'"):
                append_durably(path, b"x")
        done.set()

    threading.Thread(target=attempt, daemon=True).start()
    assert done.wait(10)


def test_a_file_is_read_up_to_a_limit(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_regular(path) == read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match=r"expected at most 4 bytes, got 5: '.*config\.json'"):
        read_regular(path, 4)


def test_folders_are_created_below_a_root_and_links_are_refused(tmp_path):
    root = tmp_path / "linked_root"
    (tmp_path / "root").mkdir()
    root.symlink_to(tmp_path / "root")
    assert make_folder_below(root, "checkpoints", "ensemble") == root / "checkpoints" / "ensemble"
    assert make_folder_below(root, "checkpoints", "ensemble").is_dir()
    (root / "students").symlink_to(tmp_path)
    (root / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="expected a folder, got a symbolic link, .*students"):
        make_folder_below(root, "students", "inner")
    with pytest.raises(NotADirectoryError, match="expected a folder, got a file: .*file"):
        make_folder_below(root, "file")
    assert not (tmp_path / "inner").exists()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_file_systems_that_cannot_synchronise_work(tmp_path, monkeypatch, code):
    failing(monkeypatch, "fsync", code)
    write_atomically(tmp_path / "a", b"1")
    append_durably(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"12"


def test_folders_that_cannot_be_opened_are_not_synchronised(tmp_path, monkeypatch):
    failing(monkeypatch, "open", errno.EACCES)
    sync_folder(tmp_path)


def test_an_error_of_the_disk_is_raised(tmp_path, monkeypatch):
    failing(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)
