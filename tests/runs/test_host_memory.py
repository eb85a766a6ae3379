"""Freed memory stays with the process that asked for that."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from oekd_fast.runs.host_memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("not glibc")
def use():
    maps = [torch.ones(2**21) for _ in range(12)]
use(); use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted as on Linux")
def test_maps_made_again_are_not_mapped_again():
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=120)
        if "not glibc" in done.stderr:
            pytest.skip("the C library is not glibc")
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    pages = 10 * 12 * 2**21 * 4 // 4096
    assert faults("keep") < pages / 100
