"""Kernels whose machine code is known beforehand, and two of the package, for the tests of bench.codegen.

python -m tests.support.sample_kernels          # takes the arguments of bench.codegen
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
import triton
import triton.language as tl

from bench.codegen import kernel_cases
from bench.codegen.command import main
from bench.codegen.kernel_cases import Case, Demand
from oekd_fast.kernels.common.launch import Launch


@triton.jit
def copy_kernel(source, target, stride, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * stride + tl.arange(0, BLOCK)
    tl.store(target + offsets, tl.load(source + offsets))


@triton.jit
def softmax_kernel(logits, probabilities, classes, BLOCK: tl.constexpr):
    """A program computes the softmax of one row, which stays in registers."""
    columns = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * classes
    z = tl.load(logits + row + columns, mask=columns < classes, other=-float("inf")).to(tl.float32)
    e = tl.exp(z - tl.max(z, 0))
    p = e / tl.sum(e, 0)
    tl.store(probabilities + row + columns, p.to(probabilities.dtype.element_ty), mask=columns < classes)


@triton.jit
def mean_softmax_kernel(logits, out, classes, BLOCK: tl.constexpr):
    """Reads a tuple of tensors in tiles, with one loop over the classes for the sums and one for the result."""
    columns = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * classes
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, classes, BLOCK):
        mask = start + columns < classes
        for j in tl.static_range(len(logits)):
            sums += tl.exp(tl.load(logits[j] + row + start + columns, mask=mask, other=-float("inf")).to(tl.float32))
    total = tl.sum(sums, 0)
    for start in range(0, classes, BLOCK):
        mask = start + columns < classes
        mean = tl.zeros([BLOCK], tl.float32)
        for j in tl.static_range(len(logits)):
            mean += tl.exp(tl.load(logits[j] + row + start + columns, mask=mask, other=-float("inf")).to(tl.float32))
        tl.store(out + row + start + columns, (mean / total).to(out.dtype.element_ty), mask=mask)


def copy(stride: int = 1024, block: int = 1024, num_warps: int = 4) -> Launch:
    source, target = torch.empty(2, 4 * stride + block)
    arguments = {"source": source, "target": target, "stride": stride, "BLOCK": block}
    return Launch(copy_kernel, 4, arguments, {"num_warps": num_warps})


def softmax(classes: int = 1024, num_warps: int = 4, dtype: torch.dtype = torch.bfloat16) -> Launch:
    logits, probabilities = torch.empty(2, 4, classes, dtype=dtype)
    block = triton.next_power_of_2(classes)
    arguments = {"logits": logits, "probabilities": probabilities, "classes": classes, "BLOCK": block}
    return Launch(softmax_kernel, 4, arguments, {"num_warps": num_warps})


def mean_softmax(students: int = 3, classes: int = 32000, block: int = 1024, num_warps: int = 4) -> Launch:
    logits = tuple(torch.empty(students, 4, classes, dtype=torch.bfloat16))
    out = torch.empty(4, classes, dtype=torch.bfloat16)
    arguments = {"logits": logits, "out": out, "classes": classes, "BLOCK": block}
    return Launch(mean_softmax_kernel, 4, arguments, {"num_warps": num_warps})


def cases() -> list[Case]:
    """Return three correct cases, then cases with narrow accesses, too many exponentials, spills, narrow accesses."""

    def case(name: str, launch: Launch, demand: Demand) -> Case:
        return Case(name, lambda: (launch,), lambda _: demand)

    wide = Demand(vector=16, loaded=4096, stored=4096, exponentials=0)
    row = Demand(vector=16, loaded=2048, stored=2048, exponentials=1024)
    tiles = Demand(vector=16, loaded=2 * 3 * 2048, stored=2048, exponentials=2 * 3 * 1024)
    return [
        case("copy", copy(), wide),
        case("softmax", softmax(), row),
        case("mean softmax", mean_softmax(), tiles),
        case("copy of odd rows", copy(stride=1023), wide),
        case("softmax in half the exponentials", softmax(), replace(row, exponentials=512)),
        case("softmax in one warp", softmax(classes=8192, num_warps=1), replace(row, exponentials=8192)),
        case("softmax of an odd row", softmax(classes=1001), row),
    ]


def with_kernels_of_the_package() -> list[Case]:
    """Return the cases of the samples, of the kernel of long rows and of that of images of labels."""
    chosen = ("value_and_grad 8192x32000 bfloat16 T=2.5", "images indices 8x19x49 float32")
    return [*cases(), *(case for case in kernel_cases.cases() if any(name in case.name for name in chosen))]


if __name__ == "__main__":
    sys.exit(main(with_kernels_of_the_package))
