"""How the ensemble distillation loss is laid out on a GPU, from (S, C, dtype) alone. Heuristics: nothing is tuned at
run time, which would compile during a CUDA graph's capture.

Three regimes:

- "rows": few classes. A warp takes whole rows, several where they are short, so that every reduction stays in a warp.
- "resident": a row of all S students fits the registers of one program: 1 read and 1 write of device memory.
- "streamed": long rows. Programs take chunks of rows in turn; the gradient's pass over a row follows the statistics'
  pass closely enough to find the logits in the second-level cache: again about 1 read and 1 write.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
VECTOR_BYTES = 16
# fp32 values of all students' and the ensemble's tiles that a thread holds at a time. The fewer threads share a row,
# the fewer instructions meet at its end: 16-bit logits are bound by instructions. Wider ones are not: they take half as
# many, for more warps on a multiprocessor.
VALUES_A_THREAD = 96
# The same of a program: five students' 4096 classes. Beyond, registers spill.
VALUES_A_PROGRAM = 24 << 10
# Logits of a streamed chunk, all students': small enough that what all programs have between the two passes should fit
# the second-level cache, large enough that the sums at a chunk's end are few against it.
CHUNK_BYTES = 80 << 10
# Every program counts the rows of a mean for itself, before its first gradient. Beyond, that outlasts a launch.
MOST_ROWS_COUNTED = 16384


@dataclass(frozen=True)
class Plan:
    """Tile and programs of one launch."""

    regime: str  # "rows", "resident" or "streamed"
    rows: int  # rows of a tile
    block: int  # classes of a tile, a power of two
    tiles: int  # tiles of a program's piece of a row, one after the other
    warps: int
    programs_per_sm: int
    registers: int | None = None  # a thread's, at most; None leaves it to the compiler

    @property
    def threads(self) -> int:
        """Threads that share a row of a tile."""
        return min(self.block, WARP * self.warps // self.rows)

    def labels(self, rows: int) -> int:
        """Labels that a program counts at a time: for large batches as many as registers hold, to wait but once."""
        few = 8 * WARP * self.warps
        return few if rows <= few else max(few, min(4096, (32 if self.warps == 1 else 64) * WARP * self.warps))

    def run(self, vec: int) -> int:
        """Neighbouring classes that lie in one thread, if it reads `vec` elements at a time."""
        return min(vec, self.block // self.threads)


def power_of_2(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def classes_a_thread(students: int, itemsize: int) -> int:
    """Classes of which a thread can hold every student's and the ensemble's value: a power of two."""
    values = VALUES_A_THREAD if itemsize <= 2 else VALUES_A_THREAD // 2
    return power_of_2(values // (students + 1) + 1) // 2 or 1


def plan_ensemble_kd(students: int, classes: int, itemsize: int) -> Plan:
    """The loss, with its gradients or without, of S students' logits of C classes, `itemsize` bytes each."""
    block = power_of_2(max(classes, 4))
    if block <= 4 * WARP:
        return Plan("rows", 4 * WARP // block, block, 1, 1, 16)
    if block * (students + 1) <= VALUES_A_PROGRAM:
        warps = min(16, max(1, block // (WARP * classes_a_thread(students, itemsize))))
        # As many programs as registers allow: about 190 a thread, or 120 where it holds half as many values.
        return Plan("resident", 1, block, 1, warps, max(1, (10 if itemsize <= 2 else 16) // warps))
    return streamed_plan(students, itemsize)


def covers_objectives(held: int, classes: int, itemsize: int) -> bool:
    """Whether so many values of every class (``Problem.held``) stay in registers: gates, the ensemble's cross-entropy,
    external teachers and mixing are there alone."""
    return plan_ensemble_kd(held - 1, classes, itemsize).regime != "streamed"


def streamed_plan(students: int, itemsize: int) -> Plan:
    """One vector of every student a thread and step."""
    vector = min(VECTOR_BYTES // itemsize, classes_a_thread(students, itemsize))
    warps = 4
    block = WARP * warps * vector
    tiles = max(1, CHUNK_BYTES // (students * itemsize * block))
    if itemsize > 2 and students <= 5:
        return Plan("streamed", 1, block, tiles, warps, 3, registers=168)
    return Plan("streamed", 1, block, tiles, warps, 2)


def plan_gradients(students: int, classes: int, itemsize: int) -> Plan:
    """The gradients from saved row statistics: element by element, whatever C."""
    vector = min(VECTOR_BYTES // itemsize, classes_a_thread(students, itemsize))
    block = min(power_of_2(max(classes, 4)), WARP * 4 * vector)
    warps = 4
    rows = max(1, WARP * warps * vector // block)
    tiles = min(8, -(-classes // block))
    return Plan("rows" if rows > 1 else "streamed", rows, block, tiles, warps, 4)
