"""Peak memory, and freed memory that stays with a process that calls `keep_freed_memory`."""

import sys

import pytest

from oekd_fast.runs import host_memory
from oekd_fast.runs.host_memory import peak_memory

from ..support.forkserver import run_code

SCRIPT = """
import resource, sys, torch
from oekd_fast.runs.host_memory import keep_freed_memory
if not keep_freed_memory():
    sys.exit("not glibc")
def use():
    maps = [torch.ones(2**21) for _ in range(12)]
use(); use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted as on Linux")
def test_memory_allocated_again_causes_no_page_faults():
    done = run_code(SCRIPT)
    if "not glibc" in done.stderr:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    pages = 10 * 12 * 2**21 * 4 // 4096
    assert int(done.stdout) < pages / 100


def test_the_peak_is_that_of_the_process(tmp_path, monkeypatch):
    if sys.platform != "win32":
        assert 50e6 < peak_memory() < 1e12
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t   1234 kB\nVmRSS:\t    567 kB\n")
    monkeypatch.setattr(host_memory, "_STATUS", status)
    assert peak_memory() == 1234 * 1024


def test_the_peak_without_proc_is_that_of_the_system_or_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "_STATUS", tmp_path / "missing")
    if host_memory.resource is not None:
        assert peak_memory() > 10e6
    monkeypatch.setattr(host_memory, "resource", None)
    assert peak_memory() is None
