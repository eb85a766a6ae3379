"""The number of blocks of a kernel that fit on one multiprocessor."""

from __future__ import annotations

from dataclasses import dataclass

_REGISTERS = 64 * 1024  # on a multiprocessor, divided equally among its four schedulers
_WARPS = 64
_BLOCKS = 32
_SHARED = {80: 164, 90: 228, 100: 228}  # KiB on a multiprocessor; a block can have all but one KiB
_RESERVED = 1024  # bytes of shared memory that the system uses in each block


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps on a multiprocessor, and the resource that limits them; no blocks if the kernel does not fit."""

    blocks: int
    warps: int
    limit: str

    @property
    def share(self) -> float:
        """Share of the warps that a multiprocessor can hold."""
        return self.warps / _WARPS


def occupancy(arch: int, num_warps: int, registers: int, shared: int) -> Occupancy:
    """Return the occupancy of a kernel.

    Args:
        arch: Compute capability x 10: 80, 90 or 100.
        num_warps: Warps of a block.
        registers: Registers of a thread.
        shared: Bytes of shared memory of a block.
    """
    per_warp = _round_up(registers, 8) * 32
    warps_by_registers = 4 * (_REGISTERS // 4 // per_warp)
    per_block = _round_up(shared + _RESERVED, 128)
    available = _SHARED[arch] * 1024
    limits = {
        "blocks": _BLOCKS,
        "threads": _WARPS // num_warps,
        "registers": warps_by_registers // num_warps,
        "shared memory": available // per_block,
    }
    limit = min(limits, key=limits.__getitem__)
    return Occupancy(limits[limit], limits[limit] * num_warps, limit)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
