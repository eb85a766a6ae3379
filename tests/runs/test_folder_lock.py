"""The lock of a run folder: two processes, processes that were killed, file systems without flock."""

import contextlib
import errno
import os
import signal

import pytest

from oekd_fast.common.files import read_regular
from oekd_fast.runs import folder_lock
from oekd_fast.runs.folder_lock import LOCK_FILE, FolderInUseError, FolderLock

from ..support.forks import FORKS
from ..support.forkserver import run_code

pytestmark = FORKS


@pytest.fixture(params=["flock", "Windows", "no locks"], autouse=True)
def file_system(request, monkeypatch):
    """Run each test with flock, with the locks of Windows, and on a file system that lacks both."""

    def missing(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if request.param == "Windows":
        windows_locks = pytest.importorskip("tests.support.windows_locks", reason="needs locks of open files")
        if not hasattr(windows_locks.fcntl, "F_OFD_SETLK"):
            pytest.skip("needs locks of open files")
        monkeypatch.setattr(folder_lock, "msvcrt", windows_locks)
        monkeypatch.setattr(folder_lock, "fcntl", None)
        keep_open_files(monkeypatch)
    elif request.param == "no locks":
        monkeypatch.setattr(folder_lock.fcntl, "flock", missing)
    return request.param


def busy(path, **options):
    raise PermissionError(errno.EACCES, "the file is open", str(path))


def keep_open_files(monkeypatch):
    """Have the removal of a file that this process has open fail, as on Windows."""
    unlink = os.unlink

    def refusing(path, **options):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.path.realpath(f"/proc/self/fd/{name}") == os.path.realpath(path):
                    busy(path)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refusing)


def hold_in_child(folder):
    """Return the process that holds the lock of `folder`."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with FolderLock(folder):
                os.write(writing, b"held")
                signal.pause()
        finally:
            os._exit(1)
    assert os.read(reading, 4) == b"held"
    os.close(reading)
    os.close(writing)
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path):
    pid = hold_in_child(tmp_path)
    try:
        with pytest.raises(FolderInUseError) as raised, FolderLock(tmp_path):
            pass
        assert str(raised.value).startswith(
            f"output_dir: {tmp_path} is in use by process {pid} on {os.uname().nodename}"
        )
    finally:
        kill(pid)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    kill(hold_in_child(tmp_path))
    assert (tmp_path / LOCK_FILE).exists()
    with FolderLock(tmp_path):
        assert read_regular(tmp_path / LOCK_FILE).startswith(f"{os.getpid()} ".encode())
    assert list(tmp_path.iterdir()) == []


def test_a_second_holder_in_the_same_process_is_refused(tmp_path):
    with FolderLock(tmp_path) as lock:
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()} on"), FolderLock(tmp_path):
            pass
        assert lock.held
    with FolderLock(tmp_path):
        pass


def test_a_process_number_that_was_given_to_another_process_is_no_holder(tmp_path):
    start = "1" if os.path.exists("/proc/self/stat") else None
    if start is None:
        pytest.skip("the start of a process is unknown without /proc")
    host = os.uname().nodename
    (tmp_path / LOCK_FILE).write_text(f"{os.getpid()} {host} {start}\n")
    with FolderLock(tmp_path) as lock:
        assert lock.held


def test_a_process_of_another_host_is_asked_for_where_the_file_is_the_lock(tmp_path, file_system):
    (tmp_path / LOCK_FILE).write_text("1 another.host 7\n")
    if file_system != "no locks":  # the system of this host knows that nobody holds it
        with FolderLock(tmp_path) as lock:
            assert lock.held
    else:
        with pytest.raises(FolderInUseError, match=r"process 1 on another\.host"), FolderLock(tmp_path):
            pass


@pytest.mark.parametrize("content", [b"", b"\xff", b"1 host\x1b[31m 7\n", b"x" * 5000])
def test_a_file_that_names_no_process_is_taken_over(tmp_path, monkeypatch, content):
    monkeypatch.setattr(folder_lock, "_SECONDS_TO_WRITE_A_RECORD", 0.1)
    (tmp_path / LOCK_FILE).write_bytes(content)
    with FolderLock(tmp_path) as lock:
        assert lock.held


def test_a_link_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(outside)
    with pytest.raises(OSError, match=LOCK_FILE), FolderLock(tmp_path / "run"):
        pass
    assert outside.read_text() == "mine"


def test_many_processes_hold_the_lock_one_at_a_time(tmp_path, monkeypatch, file_system):
    """Each process counts up a number in a file while it holds the lock."""
    if file_system == "Windows":  # where any of the others may have the file open
        monkeypatch.setattr(os, "unlink", busy)
    folder, number = tmp_path / "run", tmp_path / "number"
    folder.mkdir()
    number.write_text("0")

    def count():
        for _ in range(20):
            while True:
                try:
                    with FolderLock(folder):
                        number.write_text(str(int(number.read_text()) + 1))
                        break
                except FolderInUseError:
                    continue

    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                count()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert number.read_text() == "60"


def test_a_lock_file_that_cannot_be_removed_is_taken_over(tmp_path, monkeypatch, file_system):
    """A scanner for viruses may have a file open on Windows, which keeps it from being removed."""
    if file_system == "no locks":
        pytest.skip("there the file is the lock")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", busy)
        for _ in range(2):
            with FolderLock(tmp_path) as lock:
                assert lock.held
        assert (tmp_path / LOCK_FILE).exists()
    pid = hold_in_child(tmp_path)
    try:
        with pytest.raises(FolderInUseError, match=f"process {pid} on"), FolderLock(tmp_path):
            pass
    finally:
        kill(pid)


def test_the_module_needs_no_fcntl(tmp_path):
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from pathlib import Path\n"
        "from oekd_fast.runs.folder_lock import FolderLock, FolderInUseError\n"
        "folder = Path(sys.argv[1])\n"
        "with FolderLock(folder):\n"
        "    try:\n"
        "        FolderLock(folder).__enter__()\n"
        "    except FolderInUseError:\n"
        "        print('refused')\n"
    )
    done = run_code(code, str(tmp_path))
    assert done.stdout == "refused\n", done.stderr
