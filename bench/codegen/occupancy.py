"""How many blocks of a kernel fit on one multiprocessor."""

from __future__ import annotations

from dataclasses import dataclass

_REGISTERS = 64 * 1024  # on a multiprocessor, shared out evenly among its four schedulers
_WARPS = 64
_BLOCKS = 32
_SHARED = {80: 164, 90: 228, 100: 228}  # KiB on a multiprocessor; a block may ask for all but one
_RESERVED = 1024  # bytes of shared memory that the system takes in each block


@dataclass(frozen=True)
class Occupancy:
    blocks: int  # on a multiprocessor; 0: the kernel does not fit
    warps: int
    limit: str  # what keeps the next block out

    @property
    def share(self) -> float:
        """Of the warps that a multiprocessor can hold."""
        return self.warps / _WARPS


def occupancy(arch: int, num_warps: int, registers: int, shared: int) -> Occupancy:
    """``registers`` a thread, ``shared`` bytes a block, for compute capability ``arch`` (80, 90, 100)."""
    of_warp = _round_up(registers, 8) * 32
    warps_by_registers = 4 * (_REGISTERS // 4 // of_warp)
    of_block = _round_up(shared + _RESERVED, 128)
    available = _SHARED[arch] * 1024
    limits = {
        "blocks": _BLOCKS,
        "threads": _WARPS // num_warps,
        "registers": warps_by_registers // num_warps,
        "shared memory": available // of_block,
    }
    limit = min(limits, key=limits.__getitem__)
    return Occupancy(limits[limit], limits[limit] * num_warps, limit)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
