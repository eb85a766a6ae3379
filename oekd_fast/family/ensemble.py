"""A family of students on one shared base (Walawalkar, Shen, Savvides, ECCV 2020, arXiv 2011.07449).

Students are counted from 0. Student 0 is the full network, called the pseudo teacher. Student j has the same depth and
(N - j) / N of its channels, or another share that is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from oekd_fast.common.meta_copy import meta_copy
from oekd_fast.common.width_rule import DEFAULT_STUDENTS
from oekd_fast.family.from_networks import FromNetworks
from oekd_fast.family.gate import Gate
from oekd_fast.family.helpers import Helpers, build_helpers
from oekd_fast.family.student import Student
from oekd_fast.layers.scripting import Unscriptable
from oekd_fast.models import Architecture, get_architecture, width_rule_of, with_widths
from oekd_fast.models.in_place import InPlaceError, call_on_shared

if TYPE_CHECKING:
    from oekd_fast.family.exporting.export import ExportedFile
    from oekd_fast.family.metadata import Normalisation

_T = TypeVar("_T")


class EnsembleOutput(NamedTuple):
    """Output of a family for one batch; S is the number of students.

    Args:
        logits: S tensors [B, C].
        features: for each student, one map [B, C_b, H_b, W_b] per block.
    """

    logits: tuple[Tensor, ...]
    features: tuple[tuple[Tensor, ...], ...]


# torch.export.save stores the types of outputs by name. PyTorch has no public function that names a NamedTuple.
_pytree._register_namedtuple(EnsembleOutput, serialized_type_name="oekd_fast.EnsembleOutput")


class StudentEnsemble(FromNetworks, Unscriptable, nn.Module):
    """A family of students: a shared base, one branch per student, and adapters between their feature maps.

    `forward` takes floating-point images [B, in_channels, H, W] and returns an `EnsembleOutput` in the order of
    `members`. It raises `InPlaceError` if a branch changes the output of the base or a returned map in place.

    Args:
        architecture: network to build.
        num_students: N. By default the number of shares in `widths` or of the architecture, or else 5.
        num_classes: C, the number of logits.
        in_channels: channels of the images.
        members: indices of the students to build, ascending in 0..N-1; by default all N. A family of one trains that
            student alone.
        gated: add a `Gate`, which weights the students for each image.
        hint_channels: channels of the map of an external teacher after each block; by default student 0 is the
            teacher.
        adapters: False builds no adapters, so that all parameters have gradients from the loss on the logits alone, as
            ``torch.nn.parallel.DistributedDataParallel`` expects.
        helpers: modules for training beside the adapters: "critics" for the objective meal, "inlets" for lit.
        widths: share of the channels that each of the N students keeps, as (1, .75, .5, .25), from 1 in descending
            order. By default those of the architecture, which are (N - j) / N for networks of the package.
        width_divisor: channels become multiples of this number, as `WidthRule` describes. By default the
            architecture's, which is 1 for networks of the package: all channels are int(c r).

    The arguments `architecture` (with the widths), `num_students`, `num_classes`, `in_channels` and `members` are
    attributes too.

    Attributes:
        base: module that all students share.
        branches: one module per member.
        adapters: `adapters[b][i - 1]` is the 1x1 convolution from the map of `members[i]` after block b to the map of
            student 0. Empty unless student 0 and at least one other student are members. With `hint_channels`,
            `adapters[b][i]` leads from the map of `members[i]` to that of the external teacher. Empty if the argument
            `adapters` is False.
        helpers: critics, `helpers[b][i]` of the student and the block of `adapters[b][i]`; or inlets, 1x1 convolutions
            from the teacher's map after block b to the input of that student's block b + 1. Empty without adapters, or
            if the argument `helpers` is "none".
        hinted: whether there is an external teacher.
        gate: the `Gate`, or None.

    Raises:
        ValueError: a number is below 1; `members` is empty, out of range or not ascending; `hint_channels` has another
            number of blocks than the network, or is given with `adapters=False`; `widths` does not have N shares in
            (0, 1] that descend from 1; `width_divisor` is larger than every number of channels; `helpers` is unknown.
        TypeError: `widths` or `width_divisor` is given, and `architecture` is no `ScalableArchitecture`.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_students: int | None = None,
        num_classes: int = 10,
        in_channels: int = 3,
        members: tuple[int, ...] | None = None,
        *,
        gated: bool = False,
        hint_channels: tuple[int, ...] | None = None,
        adapters: bool = True,
        helpers: Helpers = "none",
        widths: Sequence[Real] | None = None,
        width_divisor: int | None = None,
    ) -> None:
        super().__init__()
        architecture = with_widths(architecture, widths, width_divisor)
        num_students = _number_of_students(architecture, num_students)
        _check_positive("num_classes", num_classes)
        _check_positive("in_channels", in_channels)
        if hint_channels is not None and not adapters:
            raise ValueError(f"hint_channels: expected None with adapters=False, got {tuple(hint_channels)}")
        self.architecture = architecture
        self.num_students = num_students
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.members = _checked_members(members, num_students)

        self.base = architecture.build_base(in_channels)
        self.branches = nn.ModuleList(architecture.build_branch(j, num_students, num_classes) for j in self.members)
        self.hinted = hint_channels is not None
        self.adapters = (
            _build_adapters(architecture, num_students, self.members, hint_channels) if adapters else nn.ModuleList()
        )
        size = getattr(architecture, "image_shape", (3, 64, 64))[1:]
        self.gate = Gate(channels_of_base(self.base, in_channels, size), len(self.members)) if gated else None
        self.helpers = build_helpers(helpers, self.adapters)

    def forward(self, images: Tensor) -> EnsembleOutput:
        return _outside_inference_mode(lambda: self._run_in_turn(self.base(images)))

    def forward_gated(self, images: Tensor) -> tuple[EnsembleOutput, Tensor | None]:
        """Return the output, and the gate's weights of the students for each image, fp32 [B, S]; None without a gate.

        The base runs once for both.
        """

        def run() -> tuple[EnsembleOutput, Tensor | None]:
            shared = self.base(images)
            return self._run_in_turn(shared), None if self.gate is None else self.gate(shared)

        return _outside_inference_mode(run)

    def _run_in_turn(self, shared: Tensor) -> EnsembleOutput:
        outputs = (self._run_branch(j, branch, shared) for j, branch in zip(self.members, self.branches, strict=True))
        logits, features = zip(*outputs, strict=True)
        return EnsembleOutput(logits, features)

    @staticmethod
    def _run_branch(j: int, branch: nn.Module, shared: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        try:
            return call_on_shared(branch, shared, "branch")
        except InPlaceError as error:
            raise error.of_student(j) from error.__cause__

    def student(self, j: int) -> Student:
        """Return student `j` as a plain module; `j` is its index in 0..N-1, not its position in `members`.

        The student shares its modules with the family, including their training mode. `copy.deepcopy` makes it
        independent.

        Raises:
            ValueError: `j` is not in `members`.
        """
        if j not in self.members:
            raise ValueError(f"j: expected one of the members {self.members}, got {j}")
        return Student(self.base, self.branches[self.members.index(j)])

    def export(
        self,
        path: Path | str,
        *,
        preprocessing: bool = True,
        batch: int | None = None,
        image_shape: tuple[int, int, int] | None = None,
        normalisation: Normalisation | None = None,
        classes: Sequence[str] | None = None,
    ) -> ExportedFile:
        """Write all members and their ensemble to one file, as `Student.export` writes a student.

        The outputs are ``logits_1``, ``logits_2``, ..., one for each member by its number in the family from 1, and
        ``ensemble``, all [B, C]. The ensemble is the mean of the members' logits, weighted by the gate if there is one.
        A program of torch.export returns them as a dictionary.
        """
        from oekd_fast.family.exporting.students import export_family

        return export_family(
            self,
            path,
            preprocessing=preprocessing,
            batch=batch,
            image_shape=image_shape,
            normalisation=normalisation,
            classes=classes,
        )

    def parameter_counts(self) -> list[int]:
        """Return the number of parameters of each member, base and branch, in the order of `members`."""
        return [sum(p.numel() for p in self.student(j).parameters()) for j in self.members]

    def network_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters of the base, of all branches, and of the gate."""
        gate = () if self.gate is None else self.gate.parameters()
        return chain(self.base.parameters(), self.branches.parameters(), gate)

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters of the adapters and helpers, which are used in training only."""
        return chain(self.adapters.parameters(), self.helpers.parameters())


def build_ensemble(
    model: str | Architecture,
    num_students: int | None = None,
    num_classes: int = 10,
    in_channels: int = 3,
    members: tuple[int, ...] | None = None,
    *,
    gated: bool = False,
    hint_channels: tuple[int, ...] | None = None,
    adapters: bool = True,
    helpers: Helpers = "none",
    widths: Sequence[Real] | None = None,
    width_divisor: int | None = None,
) -> StudentEnsemble:
    """Build the family of a network.

    Args:
        model: an architecture, or the name of one (see `architecture_names`).
        num_students, num_classes, in_channels, members, gated, hint_channels, adapters, helpers, widths, width_divisor:
            see `StudentEnsemble`.

    Raises:
        ValueError: `model` is unknown, or an argument is out of range.
        TypeError: `model` is neither a name nor an architecture, or an architecture that does not take other widths.
    """
    architecture = get_architecture(model) if isinstance(model, str) else model
    if not isinstance(architecture, Architecture):
        raise TypeError(f"model: expected a name or an Architecture, got {type(model).__name__}")
    return StudentEnsemble(
        architecture,
        num_students,
        num_classes,
        in_channels,
        members,
        gated=gated,
        hint_channels=hint_channels,
        adapters=adapters,
        helpers=helpers,
        widths=widths,
        width_divisor=width_divisor,
    )


def _outside_inference_mode(run: Callable[[], _T]) -> _T:
    """Return `run()`. Changes in place are not counted in inference mode; the results are the same without it."""
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return run()
    return run()


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


def channels_of_base(base: nn.Module, in_channels: int, size: tuple[int, int]) -> int:
    """Return the channels of the map of `base`, found without memory for images and without changing `base`.

    Args:
        base: base of a family or a student, on any device.
        in_channels: channels of its images.
        size: height and width of an image that it accepts, in pixels.
    """
    with torch.no_grad():
        return meta_copy(base).eval()(torch.empty(1, in_channels, *size, device="meta")).shape[1]


def _number_of_students(architecture: Architecture, given: int | None) -> int:
    shares = width_rule_of(architecture).shares
    if given is None:
        return DEFAULT_STUDENTS if shares is None else len(shares)
    _check_positive("num_students", given)
    if shares is not None and given != len(shares):
        raise ValueError(f"num_students: expected {len(shares)}, one student for each share of widths, got {given}")
    return given


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
