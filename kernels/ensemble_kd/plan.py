"""Layout of the ensemble distillation kernels on a GPU, from (S, C, dtype) alone.

The layouts are heuristics. Nothing is tuned at run time, since tuning would compile kernels while a CUDA graph is being
captured. There are four regimes:

- "rows": few classes. A warp takes whole rows, several if they are short, so that every reduction stays in a warp.
- "adjacent": the logits of a class in neighbouring rows are neighbours in memory, as in [B, C, H, W]. The threads
  of a warp take neighbouring rows, so that each of its accesses is whole sectors of 32 bytes.
- "resident": a row of all S students fits the registers of one program: 1 read and 1 write of device memory.
- "streamed": long rows. Programs take chunks of rows in turn. The gradients of a row follow its statistics closely
  enough to find the logits in the L2 cache: again about 1 read and 1 write.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
VECTOR_BYTES = 16
# fp32 values of all students' and the ensemble's tiles that a thread holds at a time. Fewer threads for each row need
# fewer instructions for its reductions, which limit the speed with 16-bit logits. With fp32 logits memory limits it, so
# a thread holds half as many values and more warps fit a multiprocessor.
VALUES_A_THREAD = 96
# fp32 values that a program holds: 4096 classes of five students and the ensemble. Beyond, registers spill.
VALUES_A_PROGRAM = 24 << 10
# Bytes of all students' logits in a streamed chunk. The chunks between the two passes of all programs should fit the L2
# cache, and the reductions at the end of a chunk should be few against its elements.
CHUNK_BYTES = 80 << 10
SECTOR_BYTES = 32  # the smallest part of device memory that is read or written
# Each program counts the rows of a mean itself, before its first gradient. With more rows, a launch that counts them
# takes less time.
MOST_ROWS_COUNTED = 16384


@dataclass(frozen=True)
class Plan:
    """Tile and programs of one launch."""

    regime: str  # "rows", "adjacent", "resident" or "streamed"; the first two run the resident kernel
    rows: int  # rows of a tile
    block: int  # classes of a tile, a power of two
    tiles: int  # tiles that a program processes in a chunk of a row
    warps: int
    programs_per_sm: int
    registers: int | None = None  # most registers of a thread; None leaves the number to the compiler

    @property
    def programs_of_one_tile(self) -> int:
        """Programs on a multiprocessor if each has one tile: registers hold the losses of its rows too, up to 255."""
        return min(self.programs_per_sm, max(1, 8 // self.warps))

    @property
    def registers_of_one_tile(self) -> int | None:
        """Most registers of a thread in such programs; None leaves the number to the compiler.

        According to bench.codegen, the compiler spills without a number in programs of one row, to use only 168, and
        with one in those of many rows.
        """
        return None if self.rows >= 8 else most_registers(self.warps, self.programs_of_one_tile)

    @property
    def threads(self) -> int:
        """Number of threads that share a row of a tile."""
        return min(self.block, WARP * self.warps // self.rows)

    def labels(self, rows: int) -> int:
        """Labels that a program counts at a time. For large batches as many as fit registers, in one round of loads."""
        few = 8 * WARP * self.warps
        return few if rows <= few else max(few, min(4096, (32 if self.warps == 1 else 64) * WARP * self.warps))

    def run(self, vec: int) -> int:
        """Neighbouring classes that one thread holds, if it loads `vec` elements at a time."""
        return min(vec, self.block // self.threads)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def most_registers(warps: int, programs: int) -> int:
    """The most registers of a thread with which `programs` of so many warps fit a multiprocessor."""
    return min(255, 65536 // (WARP * warps * programs) // 8 * 8)


def classes_a_thread(students: int, itemsize: int) -> int:
    """Number of classes, a power of two, whose values of all students and the ensemble one thread can hold."""
    values = VALUES_A_THREAD if itemsize <= 2 else VALUES_A_THREAD // 2
    return power_of_2(values // (students + 1) + 1) // 2 or 1


def plan_ensemble_kd(students: int, classes: int, itemsize: int, adjacent: bool = False, lean: bool = False) -> Plan:
    """Plan the loss, with or without gradients, of S students and C classes; logits have `itemsize` bytes.

    `adjacent` says that rows, not classes, are neighbours in memory. `lean` says that exponentials at temperature 1 are
    powers of those at T, and that labels are not both smoothed and weighted: threads then need fewer registers.
    """
    block = power_of_2(max(classes, 4))
    if adjacent and block * (students + 1) <= VALUES_A_PROGRAM:
        return adjacent_plan(students, block, itemsize)
    if block <= 4 * WARP:
        rows = 4 * WARP // block
        return Plan("rows", rows, block, 1, 1, 12 if rows < 8 else 8)
    if block * (students + 1) <= VALUES_A_PROGRAM:
        # A thread also holds the differences whose exponentials at temperature 1 are not powers of those at T.
        warps = min(16, max(1, block // (WARP * classes_a_thread(students, itemsize if lean else 4))))
        # As many programs as registers allow: up to 255 for each thread with 16-bit logits, and up to 168 with fp32 if
        # they are lean. Without a number the compiler may take fewer than several programs can have and spill; with one
        # it spills where a single program has all that a multiprocessor offers.
        programs = max(1, (12 if itemsize > 2 and lean else 8) // warps)
        registers = most_registers(warps, programs) if itemsize > 2 and lean and programs > 1 else None
        return Plan("resident", 1, block, 1, warps, programs, registers)
    return streamed_plan(students, itemsize)


def adjacent_plan(students: int, block: int, itemsize: int) -> Plan:
    """Plan for rows that are neighbours in memory: as many threads in the direction of rows as fill a sector."""
    # Threads that share a row. Many classes leave few rows a program, whose statistics take more registers.
    of_classes = max(1, block // classes_a_thread(students, itemsize if block <= 512 else 4))
    rows = max(SECTOR_BYTES // itemsize, WARP // of_classes)
    while rows > 1 and rows * of_classes > 8 * WARP:
        rows //= 2
    warps = min(16, max(1, rows * of_classes // WARP))
    return Plan("adjacent", rows, block, 1, warps, max(1, 8 // warps))


def covers_objectives(held: int, classes: int, itemsize: int) -> bool:
    """Whether registers hold `held` values of every class (``Problem.held``).

    Only the kernel that keeps rows in registers supports gates, the ensemble's cross-entropy, external teachers and
    mixing.
    """
    return plan_ensemble_kd(held - 1, classes, itemsize).regime != "streamed"


def streamed_plan(students: int, itemsize: int) -> Plan:
    """Plan for long rows: a thread loads one vector of every student in each step."""
    vector = min(VECTOR_BYTES // itemsize, classes_a_thread(students, itemsize))
    warps = 4
    block = WARP * warps * vector
    tiles = max(1, CHUNK_BYTES // (students * itemsize * block))
    if itemsize > 2 and students <= 5:
        return Plan("streamed", 1, block, tiles, warps, 3, registers=168)
    return Plan("streamed", 1, block, tiles, warps, 2)


def plan_gradients(students: int, classes: int, itemsize: int) -> Plan:
    """Plan the gradients from saved row statistics, for any C."""
    vector = min(VECTOR_BYTES // itemsize, classes_a_thread(students, itemsize))
    block = min(power_of_2(max(classes, 4)), WARP * 4 * vector)
    warps = 4
    rows = max(1, WARP * warps * vector // block)
    tiles = min(8, -(-classes // block))
    # As many programs as registers allow, which 16-bit logits need more of.
    at_once = 4 if itemsize > 2 else 2 if rows > 1 else 3
    return Plan("rows" if rows > 1 else "streamed", rows, block, tiles, warps, at_once)
