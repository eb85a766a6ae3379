"""The modules that are traced for export: preprocessing and a network, and a family with its ensemble."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oekd_fast.family.metadata import Normalisation
from oekd_fast.family.saved import LoadedStudent

Outputs = Tensor | dict[str, Tensor]
ENSEMBLE = "ensemble"


class Normalised(nn.Module):
    """A network that takes uint8 images [B, C, H, W] and normalises them as `LoadedStudent.preprocess` does."""

    def __init__(self, network: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.network = network
        for name in ("mean", "std"):
            values = torch.tensor(getattr(normalisation, name), dtype=torch.float32, device="cpu")
            self.register_buffer(name, values.view(-1, 1, 1))

    def forward(self, images: Tensor) -> Outputs:
        return self.network((images.float() / 255 - self.mean) / self.std)


class FamilyOutputs(nn.Module):
    """The students of a family and their ensemble: images [B, C_in, H, W] -> logits [B, C] by name.

    The outputs are ``logits_1``, ``logits_2``, ... for `numbers`, and ``ensemble``: the mean of the students' logits,
    or their sum weighted by the gate for each image.

    Args:
        bases: one base that all students share, or one per student.
        branches: one module per student, from the output of its base to (logits, maps).
        numbers: number of each student in the family, from 1.
        gate: weights of the students, from the output of the shared base; None for the mean.
    """

    def __init__(
        self,
        bases: Sequence[nn.Module],
        branches: Sequence[nn.Module],
        numbers: Sequence[int],
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.bases = nn.ModuleList(bases)
        self.branches = nn.ModuleList(branches)
        self.gate = gate
        self.numbers = tuple(numbers)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return *(f"logits_{number}" for number in self.numbers), ENSEMBLE

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        shared = [base(images) for base in self.bases]
        inputs = shared * len(self.branches) if len(shared) == 1 else shared
        logits = [branch(x)[0] for branch, x in zip(self.branches, inputs, strict=True)]
        family = torch.stack(logits)
        if self.gate is None:
            ensemble = family.mean(dim=0)
        else:
            weights = self.gate(shared[0])  # [B, S]
            ensemble = (weights.t().unsqueeze(2) * family).sum(dim=0)
        return dict(zip(self.names, (*logits, ensemble), strict=True))


def family_outputs(students: Sequence[LoadedStudent], gate: nn.Module | None = None) -> FamilyOutputs:
    """Return saved students of one family, and their ensemble, as one network.

    Args:
        students: students on one device. If their bases hold the same weights, the first one serves all.
        gate: weights of the students, which needs the shared base; None for the mean.

    Raises:
        ValueError: there is a gate, and the bases differ.
    """
    first, *others = (student.base for student in students)
    shared = all(_same_weights(first, base) for base in others)
    if gate is not None and not shared:
        raise ValueError("students: expected one base with the same weights for the gate, got bases that differ")
    bases = [first] if shared else [student.base for student in students]
    numbers = [student.metadata.index for student in students]
    return FamilyOutputs(bases, [student.branch for student in students], numbers, gate)


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
