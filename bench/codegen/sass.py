"""Read compiled kernels without a GPU: registers, spills, width of the loads, exponentials, loops, synchronisation.

    from bench.codegen.sass import inspect
    print(inspect(launch, arch=90))

The kernel is compiled as a call with the launch's arguments would compile it, with the same alignment and divisibility.
Its tensors may be on the CPU. Instructions are counted in the code, not as they are executed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

from oekd_fast.kernels.common.launch import Launch, interpreted

from .coalescing import narrowest_segment
from .control_flow import Instruction, natural_loops
from .occupancy import Occupancy, occupancy
from .synchronisation import Synchronisation, synchronisation

ARCHS = (80, 90, 100)  # compute capability x 10: A100, H100 and H200, B200


@dataclass(frozen=True)
class Counts:
    """Instructions by class. Loads and stores map their width, in bytes a thread, to the number of instructions."""

    instructions: int  # without padding
    loads: Mapping[int, int]  # of global memory, asynchronous ones included
    stores: Mapping[int, int]
    bulk_copies: int  # TMA
    local_loads: int
    local_stores: int
    shared_loads: int
    shared_stores: int
    exponentials: int  # MUFU.EX2
    other_mufu: Mapping[str, int]  # RCP, LG2, ...
    shuffles: int
    warp_reductions: int  # REDUX
    barriers: int
    atomics: int  # on global memory
    fences: int  # MEMBAR
    matrix: int  # HMMA, HGMMA, ...

    def bytes_loaded(self, width: int = 1) -> int:
        """Return the bytes that a thread loads by instructions at least ``width`` bytes wide, each executed once."""
        return _bytes(self.loads, width)

    def bytes_stored(self, width: int = 1) -> int:
        """Return the bytes that a thread stores by instructions at least ``width`` bytes wide, each executed once."""
        return _bytes(self.stores, width)

    def __str__(self) -> str:
        mufu = "".join(f", {count} {name}" for name, count in self.other_mufu.items())
        return (
            f"{self.instructions} instructions, loads {_widths(self.loads)}, stores {_widths(self.stores)}, "
            f"{self.exponentials} EX2{mufu}, {self.shuffles} SHFL, {self.warp_reductions} REDUX, "
            f"{self.barriers} BAR, "
            f"LDS {self.shared_loads} STS {self.shared_stores}, LDL {self.local_loads} STL {self.local_stores}"
        )


@dataclass(frozen=True)
class Resources:
    """A compiled kernel: its resources, and its instructions in the whole code and in loops."""

    kernel: str
    arch: int
    num_warps: int
    registers: int  # a thread
    stack: int  # bytes a thread, including spilled registers
    local: int  # bytes a thread besides the stack
    shared: int  # bytes a block
    code: Counts
    loops: tuple[Counts, ...]  # in the order of the code; an outer loop counts its inner ones too
    hot: Counts  # all loops with exponentials, or the whole code if no loop has any
    occupancy: Occupancy
    segment: int | None  # neighbouring bytes of memory that a warp accesses at once, at least; None if unknown
    synchronisation: Synchronisation

    @property
    def threads(self) -> int:
        return 32 * self.num_warps

    @property
    def spills(self) -> bool:
        """Whether local memory is used; no kernel of this package uses it intentionally."""
        return bool(self.stack or self.local or self.code.local_loads or self.code.local_stores)

    def __str__(self) -> str:
        lines = [
            f"{self.kernel} sm_{self.arch}: {self.num_warps} warps, {self.registers} registers, "
            f"stack {self.stack} B, local {self.local} B, shared {self.shared} B; {self.occupancy.blocks} blocks = "
            f"{self.occupancy.warps} warps a multiprocessor (limit: {self.occupancy.limit})",
            f"  code: {self.code}",
            *(f"  loop {index}: {loop}" for index, loop in enumerate(self.loops)),
        ]
        return "\n".join(lines)


def inspect(launch: Launch, arch: int = 90) -> Resources:
    """Compile the launch's kernel for compute capability ``arch`` / 10 (80, 90, 100) and disassemble it."""
    if arch not in ARCHS:
        raise ValueError(f"arch: expected one of {ARCHS}, got {arch!r}")
    compiled = compile_for(launch, arch)
    name = compiled.metadata.name
    usage, listing = _cuobjdump(compiled.asm["cubin"], "-res-usage", "-sass")
    registers, stack, local = parse_usage(usage, name)
    code = parse_sass(listing, name)
    loops = natural_loops(code)
    num_warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    return Resources(
        kernel=name,
        arch=arch,
        num_warps=num_warps,
        registers=registers,
        stack=stack,
        local=local,
        shared=shared,
        code=count(code),
        loops=tuple(map(count, loops)),
        hot=count(_hot(code, loops)),
        occupancy=occupancy(arch, num_warps, registers, shared),
        segment=narrowest_segment(compiled.asm["ttgir"], launch.arguments),
        synchronisation=synchronisation(compiled.asm["ptx"]),
    )


def compile_for(launch: Launch, arch: int) -> triton.compiler.CompiledKernel:
    """Compile for a compute capability; ``asm`` of the result holds ttir, ttgir, llir, ptx and cubin."""
    if interpreted(launch.kernel):
        raise RuntimeError("the kernel was made with TRITON_INTERPRET=1, under which Triton compiles nothing: unset it")
    with _pretend(arch):
        return launch.kernel.warmup(grid=(launch.programs,), **launch.arguments, **launch.options)


class _NoGPU:
    """A driver without a GPU: what Triton calls until a compiled kernel is loaded."""

    def __init__(self, arch: int) -> None:
        self._target = GPUTarget("cuda", arch, 32)

    def get_current_device(self) -> str:
        return f"sm_{self._target.arch}"  # the key of a kernel's cache; a real device has a number

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


@contextmanager
def _pretend(arch: int) -> Iterator[None]:
    """Compile for ``arch`` inside the context. Reads a private attribute of Triton, since .active needs a GPU."""
    config = triton.runtime.driver
    before = config._active
    config.set_active(_NoGPU(arch))
    try:
        yield
    finally:
        config.set_active(before)


def _cuobjdump(cubin: bytes, *flags: str) -> list[str]:
    """Return what cuobjdump of Triton's wheel prints with each of the flags."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        outputs = []
        for flag in flags:
            command = [triton.knobs.nvidia.cuobjdump.path, flag, str(file)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"cuobjdump {flag} failed with code {done.returncode}: {done.stderr.strip()}")
            outputs.append(done.stdout)
    return outputs


def parse_usage(text: str, kernel: str) -> tuple[int, int, int]:
    """Return registers, bytes of stack and bytes of local memory of a thread from ``cuobjdump -res-usage``."""
    found = re.search(rf"Function {re.escape(kernel)}:\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if not found:
        raise ValueError(f"cuobjdump -res-usage: expected a line for {kernel!r}, got {text!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack, local


def parse_sass(text: str, kernel: str) -> list[Instruction]:
    """Return the kernel's instructions from ``cuobjdump -sass``, without the padding after them."""
    bodies = dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", text, re.DOTALL))
    if kernel not in bodies:
        raise ValueError(f"cuobjdump -sass: expected the code of {kernel!r}, found {sorted(bodies)}")
    line = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;")
    code = [Instruction(int(a, 16), p, opcode, rest) for a, p, opcode, rest in line.findall(bodies[kernel])]
    return [i for i in code if i.name != "NOP" and i.target != i.address]


def count(code: Iterable[Instruction]) -> Counts:
    """Count instructions by class."""
    code = list(code)
    names = Counter(i.name for i in code)
    mufu = Counter(i.modifiers[0] for i in code if i.name == "MUFU")
    exponentials = mufu.pop("EX2", 0)

    def total(*which: str) -> int:
        return sum(names[name] for name in which)

    def by_width(*which: str) -> dict[int, int]:
        return dict(sorted(Counter(_width(i) for i in code if i.name in which).items(), reverse=True))

    return Counts(
        instructions=len(code),
        loads=by_width("LDG", "LD", "LDGSTS"),
        stores=by_width("STG", "ST"),
        bulk_copies=total("UBLKCP", "UTMALDG", "UTMASTG"),
        local_loads=total("LDL"),
        local_stores=total("STL"),
        shared_loads=total("LDS", "LDSM"),
        shared_stores=total("STS", "STSM"),
        exponentials=exponentials,
        other_mufu=dict(sorted(mufu.items())),
        shuffles=total("SHFL"),
        warp_reductions=total("REDUX", "CREDUX"),
        barriers=total("BAR", "UCGABAR_ARV", "UCGABAR_WAIT"),
        atomics=total("ATOM", "ATOMG", "RED", "REDG"),
        fences=total("MEMBAR"),
        matrix=sum(number for name, number in names.items() if name.endswith("MMA")),
    )


def _hot(code: list[Instruction], loops: list[list[Instruction]]) -> list[Instruction]:
    inside = {i.address for loop in loops if count(loop).exponentials for i in loop}
    return [i for i in code if i.address in inside] or code


def _width(access: Instruction) -> int:
    """Return the bytes of an access: 16 for LDG.E.128, 2 for LDG.E.U16.CONSTANT, 4 without a modifier."""
    for modifier in access.modifiers:
        if match := re.fullmatch(r"[US]?(8|16|64|128|256)", modifier):
            return int(match[1]) // 8
    return 4


def _bytes(accesses: Mapping[int, int], width: int) -> int:
    return sum(bytes_ * number for bytes_, number in accesses.items() if bytes_ >= width)


def _widths(accesses: Mapping[int, int]) -> str:
    return " + ".join(f"{number} x {8 * width} bit" for width, number in accesses.items()) or "none"
