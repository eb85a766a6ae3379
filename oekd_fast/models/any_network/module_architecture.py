"""The architecture of a family whose students are cut from networks that exist as modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from oekd_fast.common.meta_copy import meta_copy
from oekd_fast.common.width_rule import WidthRule
from oekd_fast.models.any_network.branch import NetworkBranch
from oekd_fast.models.any_network.cut import Cut, TracedNetwork, check_same_graph, find_cut
from oekd_fast.models.any_network.entry import select_channels
from oekd_fast.models.any_network.errors import CutError
from oekd_fast.models.any_network.inspection import (
    check_same_outputs,
    check_shared_parameters,
    last_weight_of_base,
    modules_that_change_inputs,
    run_network,
)
from oekd_fast.models.any_network.map_views import map_shape
from oekd_fast.models.any_network.pieces import Pieces
from oekd_fast.models.any_network.sources import NetworkSource, Smaller
from oekd_fast.models.any_network.units import block_class
from oekd_fast.models.functional import Branch
from oekd_fast.models.scaling import Width

_PROBE = Width(1, 2)  # of the smaller network that shows which dimension holds the channels


@dataclass(frozen=True)
class _Student:
    """What is known of a student after it has been built once.

    traced: its graph; None without a cut.
    skeleton: the network on the meta device.
    of_base: channels of its own base, which the shared one replaces.
    channels: channels of the map of each block.
    """

    traced: TracedNetwork | None
    skeleton: nn.Module
    of_base: int = 0
    channels: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """How all students are cut.

    cut, traced: cut and graph of student 1.
    weight_of_base: last parameter of the base with one row for each of its channels.
    keep: layers whose channels smaller students keep, so that their blocks take the whole map of the base.
    out_of_place: modules that work in place in the user's network, and out of place in the family.
    """

    cut: Cut
    traced: TracedNetwork
    weight_of_base: str | None
    keep: tuple[str, ...] = ()
    out_of_place: tuple[str, ...] = ()

    def pieces(self, network: nn.Module, traced: TracedNetwork, entry: nn.Module | None = None) -> Pieces:
        """Cut `network`, of the structure of `traced`."""
        for name in self.out_of_place:
            network.get_submodule(name).inplace = False
        return traced.pieces(network, self.cut, entry)

    def base(self, network: nn.Module) -> nn.Module:
        return self.pieces(network, self.traced).base

    def branch(self, network: nn.Module, traced: TracedNetwork, entry: nn.Module | None = None) -> NetworkBranch:
        pieces = self.pieces(network, traced, entry)
        return NetworkBranch(pieces.stages, pieces.classifier, [seam.axis for seam in self.cut.seams[1:]])


class ModuleArchitecture:
    """A network that is given as modules, cut into base, blocks and classifier; implements `Architecture`.

    `build_base` and `build_branch` return modules of their own at each call. `StudentEnsemble.from_module` has
    student 1 share the user's module instead. Where meta is PyTorch's default device, a student that was built before
    has its weights on meta, which takes no time; others have their values.

    Args:
        name: name of the network in saved students and reports.
        source: builds the networks of the students.
        images: example images [B, C, H, W], B >= 1, float32, on the device of the networks.
        base: qualified name of the last module of the base; None finds it.
        blocks: qualified names of the modules after which a map is returned. None finds them; an empty sequence stands
            for students that share no base and return no maps.
        width_rule: shares of the channels of all students, and divisor of channels.

    Attributes:
        num_classes: number of logits.
        image_shape, device: (C, H, W) of the example images, and their device.
        block_type: class of the modules that the network repeats, or of its pieces if it repeats none.

    Raises:
        CutError: the network cannot be traced or cut; see `find_cut`.
        ScalingError: the network cannot be scaled.
        ValueError: the network fails on `images`.
    """

    def __init__(
        self,
        name: str,
        source: NetworkSource,
        images: Tensor,
        *,
        base: str | None = None,
        blocks: Sequence[str] | None = None,
        width_rule: WidthRule | None = None,
    ) -> None:
        self.name, self.width_rule = name, width_rule or WidthRule()
        self.image_shape, self.device = tuple(images.shape[1:]), images.device
        self._source, self._shared = source, None
        self._images = images[:2].detach().clone() if len(images) > 1 else torch.cat([images.detach()] * 2)
        network = source.largest()
        self.num_classes = run_network(network, self._images).shape[1]
        self._students: dict[Width, _Student] = {}
        whole = blocks is not None and not len(blocks)
        if whole and base is not None:
            raise CutError(f"base: expected None with blocks=(), for students that share no base, got {base!r}")
        self._skeleton = meta_copy(network, buffers=False)
        self._plan = None if whole else _make_plan(source, network, self._images, base, blocks)
        self.block_type: type[nn.Module] = block_class(network) or (type(network) if whole else fx.GraphModule)

    @property
    def cut(self) -> Cut | None:
        """The cut into base and blocks; None if the students share no base and return no maps."""
        return None if self._plan is None else self._plan.cut

    def build_base(self, in_channels: int) -> nn.Module:
        """Return a base: images [B, in_channels, H, W] -> map [B, C, H', W'].

        Raises:
            ValueError: `in_channels` is not that of the example images.
        """
        _check_equal("in_channels", self.image_shape[0], in_channels)
        return self._largest()[0].train() if self._shared is None else self._shared[0]

    def build_branch(self, j: int, n: int, num_classes: int) -> Branch:
        """Return the branch of student `j` of `n`.

        Raises:
            ValueError: `num_classes` is not that of the network.
            CutError: the student has another structure than student 1.
        """
        _check_equal("num_classes", self.num_classes, num_classes)
        width = Width(j, n, self.width_rule)
        if width.ratio == 1:
            return self._largest()[1].train() if self._shared is None else self._shared[1]
        network, rows = self._smaller(width)
        student = self._student(width, network)
        if student.traced is None:
            return Branch([], network).train()
        plan, entry = self._plan, None
        channels = plan.cut.shapes[0][1]
        if student.of_base != channels:
            kept = rows.get(plan.weight_of_base)
            if kept is None or len(kept) != student.of_base:
                kept = torch.arange(student.of_base)
            entry = select_channels(channels, kept, self.device)
        return plan.branch(network, student.traced, entry).train()

    def map_channels(self, j: int, n: int) -> tuple[int, ...]:
        """Return the channels of the map of each block of student `j` of `n`, which is built unless it was before."""
        if self._plan is None:
            return ()
        width = Width(j, n, self.width_rule)
        if width.ratio == 1:
            return tuple(shape[1] for shape in self._plan.cut.shapes[1:])
        if width not in self._students:
            self._student(width, self._smaller(width).network)
        return self._students[width].channels

    def with_widths(self, rule: WidthRule) -> ModuleArchitecture:
        """Return this network with students of the channels of `rule`."""
        other = copy.copy(self)
        other.width_rule = rule
        return other

    def sharing(self, module: nn.Module) -> ModuleArchitecture:
        """Return this network with a base and a student 1 that share the modules of `module`, for one family."""
        other = copy.copy(self)
        other._shared = self._parts(module)
        return other

    def _parts(self, network: nn.Module) -> tuple[nn.Module, Branch]:
        """Return base and branch of student 1, which share the modules of `network`."""
        if self._plan is None:
            return nn.Identity(), Branch([], network)
        return self._plan.base(network), self._plan.branch(network, self._plan.traced)

    def _largest(self) -> tuple[nn.Module, Branch]:
        if torch.get_default_device().type == "meta":
            return self._parts(copy.deepcopy(self._skeleton))
        with self.device:
            return self._parts(self._source.largest())

    def _smaller(self, width: Width) -> Smaller:
        if torch.get_default_device().type == "meta" and width in self._students:
            return Smaller(copy.deepcopy(self._students[width].skeleton), {})
        with self.device:  # on meta, values that the structure depends on would be lost
            return self._source.smaller(width, () if self._plan is None else self._plan.keep)

    def describe(self, n: int) -> str:
        """Return a table of the cut as text: the last module of base and blocks, its map, and channels by student."""
        if self._plan is None:
            return f"{self.name}: {n} whole networks, which share no base and return no maps"
        cut = self._plan.cut
        students = [self.map_channels(j, n) for j in range(n)]
        rows = [("part", "ends after", "map", f"channels of students 1-{n}" if n > 1 else "channels")]
        for b, (name, shape) in enumerate(zip(cut.names, cut.shapes, strict=True)):
            counts = [shape[1]] if b == 0 else [channels[b - 1] for channels in students]
            part = "base" if b == 0 else f"block {b}"
            rows.append((part, name, "x".join(map(str, shape[2:])), " ".join(map(str, counts))))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
        )

    def _student(self, width: Width, network: nn.Module) -> _Student:
        """Return what is known of the student of `width`, for which `network` was built."""
        if width not in self._students:
            with self.device:
                self._students[width] = _inspect(self._plan, network, self._images, self.num_classes, width)
        return self._students[width]

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleArchitecture:
        return self  # it does not change, and a copy of a family need not copy what its students are made of


def _make_plan(
    source: NetworkSource, network: nn.Module, images: Tensor, base: str | None, blocks: Sequence[str] | None
) -> _Plan:
    narrow = source.smaller(_PROBE).network
    cut, traced = find_cut(network, images, narrow, base, blocks)
    channels = cut.shapes[0][1]
    weight = last_weight_of_base(network, traced.modules_of_base(cut), channels)
    plan = _Plan(cut, traced, weight)
    pieces = plan.pieces(network, traced)
    check_shared_parameters(pieces, cut.names)
    plan = replace(plan, out_of_place=modules_that_change_inputs(pieces, cut.names[1:], images))
    check_same_outputs(network, plan.pieces(network, traced), images)
    if weight is None or not source.keeps_layers:
        return plan
    layer = weight.rpartition(".")[0]
    # The blocks may take the whole map of the base where that leaves their own channels as they are.
    thin = _inspect(plan, narrow, images, None, _PROBE)
    if thin.of_base == channels:
        return plan
    try:
        kept = _inspect(plan, source.smaller(_PROBE, (layer,)).network, images, None, _PROBE)
    except ValueError:  # the channels of the base have to be scaled together with others
        return plan
    return replace(plan, keep=(layer,)) if (kept.of_base, kept.channels) == (channels, thin.channels) else plan


def _inspect(plan: _Plan | None, network: nn.Module, images: Tensor, num_classes: int | None, width: Width) -> _Student:
    """Return the graph and the channels of a smaller student.

    Raises:
        CutError: it differs from student 1 in more than channels.
    """
    what = f"student {width.j + 1} of {width.n}"
    classes = run_network(network, images).shape[1]
    if num_classes is not None and classes != num_classes:
        raise CutError(
            f"module: {what} has another output than student 1: expected {num_classes} logits, got {classes}"
        )
    if plan is None:
        return _Student(None, meta_copy(network, buffers=False))
    traced = TracedNetwork.of(network, images, plan.cut.enter)
    check_same_graph(plan.traced, traced, what)
    shapes = [map_shape(traced.shape_at(seam.node), seam.axis) for seam in plan.cut.seams]
    for name, mine, its in zip(plan.cut.names, plan.cut.shapes, shapes, strict=True):
        if mine[2:] != its[2:]:
            raise CutError(
                f"module: {what} has another map than student 1 after {name!r}: expected {list(mine[2:])} places, got "
                f"{list(its[2:])}"
            )
    of_base, *channels = (shape[1] for shape in shapes)
    return _Student(traced, meta_copy(network, buffers=False), of_base, tuple(channels))


def _check_equal(argument: str, expected: int, got: int) -> None:
    if expected != got:
        raise ValueError(f"{argument}: expected {expected}, as the module has, got {got}")
