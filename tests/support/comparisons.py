"""Feature maps of a teacher and of narrower students, for tests of the losses between them."""

import torch
from torch import nn

from oekd_fast.losses.comparison import ComparedStudent

TEACHER = ((6, 8), (8, 4), (10, 4))  # channels and side length of each block's map


def teacher_maps(dtype, rows=3):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(rows, c, side, side, generator=generator, dtype=torch.float64).to(dtype) for c, side in TEACHER]


def compared_students(dtype, count=2, rows=3):
    """Return students whose maps require gradients; adapters are float64 for float64 maps, else float32."""
    torch.manual_seed(6)
    students = []
    for j in range(count):
        widths = [c - 2 * j - 1 for c, _ in TEACHER]
        maps = [
            torch.randn(rows, c, side, side, dtype=torch.float64).to(dtype).requires_grad_()
            for c, (_, side) in zip(widths, TEACHER, strict=True)
        ]
        adapters = [nn.Conv2d(c, target, 1) for c, (target, _) in zip(widths, TEACHER, strict=True)]
        students.append(ComparedStudent(maps, [a.double() if dtype == torch.float64 else a for a in adapters]))
    return students
