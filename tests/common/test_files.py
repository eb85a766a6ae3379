import errno
import os

import pytest

from oekd_fast.common import files
from oekd_fast.common.files import write_atomically


def test_write_atomically_replaces_a_file_or_keeps_it_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"newer")
    assert path.read_bytes() == b"new" and [path.name for path in tmp_path.iterdir()] == ["summary.json"]
