"""The networks whose latency is measured: each student alone, and the ensemble of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oekd_fast.family.gate import Gate
from oekd_fast.family.saved import LoadedStudent


@dataclass(frozen=True)
class Network:
    """A network that is measured.

    Args:
        module: maps uint8 images [B, C, H, W] to logits, in evaluation mode.
        cost: estimated time of a call, in any unit that all networks share.
    """

    module: nn.Module
    cost: float


class StudentPrediction(nn.Module):
    """A student with the normalisation of its images: uint8 [B, C_in, H, W] -> logits [B, C]."""

    def __init__(self, student: LoadedStudent) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        return self.student(self.student.preprocess(images))


class EnsemblePrediction(nn.Module):
    """The mean of the logits of all students, or their sum weighted by a gate: uint8 [B, C_in, H, W] -> logits [B, C].

    The base, which is the same for all students, runs once.
    """

    def __init__(self, students: Sequence[LoadedStudent], gate: Gate | None = None) -> None:
        super().__init__()
        self.first = students[0]
        self.branches = nn.ModuleList(student.branch for student in students)
        self.gate = gate

    def forward(self, images: Tensor) -> Tensor:
        shared = self.first.base(self.first.preprocess(images))
        logits = torch.stack([branch(shared)[0] for branch in self.branches])
        if self.gate is None:
            return logits.mean(dim=0)
        return torch.einsum("bs,sbc->bc", self.gate(shared), logits)


def networks_of(students: Sequence[LoadedStudent], flops: Sequence[int], gate: Gate | None = None) -> list[Network]:
    """Return each student, then the ensemble if there are several students.

    Args:
        students: students of one family, on the CPU and in evaluation mode.
        flops: operations of each student for one image.
        gate: gate of the family, on the CPU and in evaluation mode; None without one.
    """
    networks = [Network(StudentPrediction(student), cost) for student, cost in zip(students, flops, strict=True)]
    if len(students) > 1:
        networks.append(Network(EnsemblePrediction(students, gate), sum(flops)))
    return networks


def size_of(module: nn.Module) -> dict[str, int]:
    """Return the number of parameters and the bytes of the weights, as in a file without a header.

    What `module` holds several times counts once.
    """
    tensors = {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}
    return {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "file_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
    }
