"""Maps of students whose blocks are fed with the teacher's maps instead of their own (LIT).

Source: Koratana, Kang, Bailis, Zaharia, "LIT: Learned Intermediate Representation Training for Model Compression", ICML
2019, section 3; arXiv 1810.01937 is an earlier version with another title.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import Tensor, nn

from oekd_fast.layers.running_statistics import statistics_unchanged
from oekd_fast.models.functional import Branch
from oekd_fast.parallel.executor import Executor


def maps_from_teacher_inputs(
    branches: Sequence[Branch],
    inlets: Sequence[Sequence[nn.Module] | None],
    maps: Sequence[Sequence[Tensor]],
    teacher: Sequence[Tensor],
    executor: Executor,
    forward: AbstractContextManager,
) -> list[Sequence[Tensor]]:
    """Return the maps that the intermediate loss compares, one a block, of each student that `executor` runs.

    The map of the first block is the student's own, because all students of a family share its input. Each further
    block runs once more, on the teacher's map before it. Running statistics of norms stay those of the students' own
    inputs, with which the students are evaluated.

    Args:
        branches: the students, as `executor` runs them.
        inlets: for each student one module for each block but the first, from the teacher's map before the block to an
            input of the block; None leaves the student's maps as they are.
        maps: each student's own maps, one a block.
        teacher: the teacher's maps, one a block. They receive no gradient.
        forward: context of the networks' forward passes.
    """
    fed = [nn.Identity() if own is None else _FedStages(b, own) for b, own in zip(branches, inlets, strict=True)]
    inputs = [target.detach() for target in teacher[:-1]]
    with statistics_unchanged(fed), forward:
        results = executor.forward(fed, [inputs] * len(fed))
    return [
        own if given is None else (own[0], *result) for own, given, result in zip(maps, inlets, results, strict=True)
    ]


class _FedStages(nn.Module):
    """Stages of a branch from the second on, each behind an inlet: the maps before them -> the maps after them."""

    def __init__(self, branch: Branch, inlets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.training = branch.training
        self.stages, self.inlets = branch.stages[1:], nn.ModuleList(inlets)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(stage(inlet(x)) for stage, inlet, x in zip(self.stages, self.inlets, inputs, strict=True))
