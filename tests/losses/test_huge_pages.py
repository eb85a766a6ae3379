"""Large gradients of the compiled loss are in memory for which the system was asked for huge pages."""

from pathlib import Path

import pytest
import torch

from oekd_fast import ensemble_kd_loss

from ..conftest import ISAS

SMAPS = Path("/proc/self/smaps")
pytestmark = [
    pytest.mark.skipif(not ISAS, reason="the native extension was not built"),
    pytest.mark.skipif(
        not SMAPS.exists() or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
        reason="no transparent huge pages",
    ),
]


def gradients(rows: int) -> tuple[torch.Tensor, ...]:
    logits = [torch.randn(rows, 32000, requires_grad=True) for _ in range(2)]
    ensemble_kd_loss(logits, torch.arange(rows), backend="native").loss.backward()
    return tuple(z.grad for z in logits)


def is_advised(address: int) -> bool:
    """Whether the mapping that holds `address` has the flag of madvise(MADV_HUGEPAGE)."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError(f"no mapping holds {address:#x}")


def middle(grad: torch.Tensor) -> int:
    return grad.data_ptr() + grad.nbytes // 2


@pytest.mark.slow
def test_large_gradients_are_in_huge_pages():
    large = gradients(300)  # 38 MB a student
    assert all(is_advised(middle(grad)) for grad in large)
