"""Memory that is available: the machine's, and that of the control groups around the process."""

import numpy as np
import pytest
import torch

from oekd_fast.data import DataError, Split, memory


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Return a function that writes files of a Linux system and makes the module read them."""
    for name in ("_MEMINFO", "_OWN_GROUPS", "_GROUPS"):
        monkeypatch.setattr(memory, name, tmp_path / name)

    def write(meminfo: str = "", own: str = "", **files: str) -> None:
        (tmp_path / "_MEMINFO").write_text(meminfo)
        (tmp_path / "_OWN_GROUPS").write_text(own)
        for name, content in files.items():
            path = tmp_path / "_GROUPS" / name.replace("__", "/").replace("_of_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return write


MEMINFO = "MemTotal: 4000 kB\nMemAvailable: 2000 kB\nSwapFree: 48 kB\nHugePages_Total: 0\n"


def test_available_memory_of_the_machine_counts_free_swap(system):
    system(MEMINFO)
    assert memory.available_memory() == 2048 * 1024


def test_the_smallest_control_group_of_version_2_bounds_the_memory(system):
    system(
        MEMINFO,
        "0::/job/step\n",
        job__memory_of_max="9000\n",
        job__memory_of_current="5000\n",
        job__memory_of_stat="anon 1\ninactive_file 300\nactive_file 20\n",
        job__step__memory_of_max="max\n",
        job__step__memory_of_current="1\n",
    )
    assert memory.available_memory() == 9000 - 5000 + 320


def test_control_groups_of_version_1_count_the_groups_inside(system):
    system(
        MEMINFO,
        "5:cpu,memory:/a\n0::/\n",
        memory__a__memory_of_limit_in_bytes="700",
        memory__a__memory_of_usage_in_bytes="600",
        memory__a__memory_of_stat="inactive_file 0\ntotal_inactive_file 50\n",
    )
    assert memory.available_memory() == 150


def test_without_the_files_of_linux_all_memory_of_the_machine_counts(system):
    assert memory.available_memory() > 2**20


def test_a_copy_of_a_split_that_does_not_fit_is_an_error(monkeypatch):
    split = Split(torch.zeros(10, 1, 4, 4, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64))
    monkeypatch.setattr(memory, "available_memory", lambda: 5 * 16)
    assert len(split.select(torch.arange(5))) == 5
    with pytest.raises(DataError, match=r"copy of a split: expected at most 0.0 GiB .*, got 6 images of 1 x 4 x 4"):
        split.select(torch.arange(6))
    with pytest.raises(DataError, match=r"got 10 images of 3 x 4 x 4 bytes .* set stream=True"):
        split.with_channels(3)


def test_allocation_returns_an_array_of_bytes(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    array = memory.allocate("x", 2, (1, 3, 3))
    assert array.shape == (2, 1, 3, 3) and array.dtype == np.uint8
    with pytest.raises(DataError, match="x: expected an array that can be allocated, got 2 images of"):
        memory.allocate("x", 2, (3, 2**40, 2**40))
