"""A family of students on one shared base (Walawalkar, Shen, Savvides, ECCV 2020, arXiv 2011.07449).

Students are counted from 0. Student 0 is the full network, the pseudo teacher; student j keeps its
depth and (N - j) / N of its channels.
"""

import copy
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from oekd_fast.family.gate import Gate
from oekd_fast.models import Architecture, get_architecture


class EnsembleOutput(NamedTuple):
    """What the ensemble computes for one batch; S is the number of students.

    logits: S tensors [B, C].
    features: for each student, one map [B, C_b, H_b, W_b] for each block.
    """

    logits: tuple[Tensor, ...]
    features: tuple[tuple[Tensor, ...], ...]


class Student(nn.Module):
    """One student alone: the base and its branch; images [B, C_in, H, W] -> logits [B, C]."""

    def __init__(self, base: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.branch = branch
        # The parts may belong to an ensemble that is being evaluated.
        self.training = base.training

    def forward(self, images: Tensor) -> Tensor:
        logits, _ = self.branch(self.base(images))
        return logits


class StudentEnsemble(nn.Module):
    """A shared base, a branch for each student, and adapters from narrow maps to the teacher's.

    `forward` takes float images [B, in_channels, H, W] and returns an `EnsembleOutput` in the order
    of `members`. Attributes: `architecture`, `num_students`, `num_classes`, `in_channels`, `members`,
    `base`, `branches` (one a member) and `adapters`: `adapters[b][i - 1]` is the 1x1 convolution from
    the map of `members[i]` after block b to the map of student 0. `adapters` is empty unless
    student 0 and at least one other are members; with `hint_channels`, `adapters[b][i]` goes from the map of
    `members[i]` to that of an external teacher. `gate`, if asked for, weighs the students for each image.

    Args:
        architecture: what to build.
        num_students: N, which sets the widths of all students.
        num_classes: C, the number of logits.
        in_channels: channels of the images.
        members: the students to build, as ascending indices in 0..N-1; None means all N. A family of
            one trains that student alone.
        gated: with a `Gate`.
        hint_channels: of an external teacher's map after each block.

    Raises:
        ValueError: a number is below 1, `members` is empty, out of range or not ascending, or `hint_channels` are of
            another number of blocks.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_students: int = 5,
        num_classes: int = 10,
        in_channels: int = 3,
        members: tuple[int, ...] | None = None,
        *,
        gated: bool = False,
        hint_channels: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        _check_positive("num_students", num_students)
        _check_positive("num_classes", num_classes)
        _check_positive("in_channels", in_channels)
        self.architecture = architecture
        self.num_students = num_students
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.members = _checked_members(members, num_students)

        self.base = architecture.build_base(in_channels)
        self.branches = nn.ModuleList(architecture.build_branch(j, num_students, num_classes) for j in self.members)
        self.hinted = hint_channels is not None
        self.adapters = _build_adapters(architecture, num_students, self.members, hint_channels)
        self.gate = Gate(_channels_of(self.base, architecture, in_channels), len(self.members)) if gated else None

    def forward(self, images: Tensor) -> EnsembleOutput:
        shared = self.base(images)
        logits, features = zip(*(branch(shared) for branch in self.branches), strict=True)
        return EnsembleOutput(logits, features)

    def student(self, j: int) -> Student:
        """Return student `j` (its index in 0..N-1, not its place in `members`) as a plain module.

        It shares its parts with the ensemble, their train or eval mode included; `copy.deepcopy` makes
        it independent.

        Raises:
            ValueError: `j` is not among `members`.
        """
        if j not in self.members:
            raise ValueError(f"j: expected one of the members {self.members}, got {j}")
        return Student(self.base, self.branches[self.members.index(j)])

    def parameter_counts(self) -> list[int]:
        """Return the parameters of each member alone, base and branch, in the order of `members`."""
        return [sum(p.numel() for p in self.student(j).parameters()) for j in self.members]

    def network_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters of the base, of all branches, and of the gate."""
        gate = () if self.gate is None else self.gate.parameters()
        return chain(self.base.parameters(), self.branches.parameters(), gate)

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters of the adapters, which only training needs."""
        return self.adapters.parameters()


def build_ensemble(
    model: str | Architecture,
    num_students: int = 5,
    num_classes: int = 10,
    in_channels: int = 3,
    members: tuple[int, ...] | None = None,
    *,
    gated: bool = False,
    hint_channels: tuple[int, ...] | None = None,
) -> StudentEnsemble:
    """Build the family of `model`, an architecture or the name of one; see `StudentEnsemble` for the rest.

    Raises:
        ValueError: `model` is unknown, or an argument is out of range.
        TypeError: `model` is neither a name nor an architecture.
    """
    architecture = get_architecture(model) if isinstance(model, str) else model
    if not isinstance(architecture, Architecture):
        raise TypeError(f"model: expected a name or an Architecture, got {type(model).__name__}")
    return StudentEnsemble(
        architecture, num_students, num_classes, in_channels, members, gated=gated, hint_channels=hint_channels
    )


def _build_adapters(
    architecture: Architecture, num_students: int, members: tuple[int, ...], hint_channels: tuple[int, ...] | None
) -> nn.ModuleList:
    channels = [architecture.map_channels(j, num_students) for j in members]
    if hint_channels is not None:
        if len(hint_channels) != len(channels[0]):
            raise ValueError(f"hint_channels: expected {len(channels[0])} blocks, got {len(hint_channels)}")
        teacher, students = hint_channels, channels
    elif members[0] == 0 and len(members) > 1:
        teacher, *students = channels
    else:
        return nn.ModuleList()
    return nn.ModuleList(
        nn.ModuleList(nn.Conv2d(own, target, kernel_size=1) for own in of_block)
        for target, *of_block in zip(teacher, *students, strict=True)
    )


def _channels_of(base: nn.Module, architecture: Architecture, in_channels: int) -> int:
    """Of the base's map, found by a run without data."""
    size = getattr(architecture, "image_shape", (3, 64, 64))[1:]
    with torch.no_grad():
        return copy.deepcopy(base).to("meta").eval()(torch.empty(1, in_channels, *size, device="meta")).shape[1]


def _checked_members(members: tuple[int, ...] | None, num_students: int) -> tuple[int, ...]:
    if members is None:
        return tuple(range(num_students))
    members = tuple(members)
    if not members or members != tuple(sorted(set(members) & set(range(num_students)))):
        raise ValueError(
            f"members: expected distinct student indices in 0..{num_students - 1}, ascending and at least "
            f"one, got {members}"
        )
    return members


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
