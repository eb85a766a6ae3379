"""What a narrower copy consists of: layouts and sizes of its tensors, from the record of its network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from oekd_fast.models.any_network.layouts import Layout, Shape, collapsed, dims_of, restricted
from oekd_fast.models.any_network.recording import Record
from oekd_fast.models.any_network.scaling_errors import ScalingError
from oekd_fast.models.any_network.steps import Step


@dataclass(frozen=True)
class Expected:
    """What an operation of a narrower copy has to do.

    Args:
        step: the operation of the module.
        layouts: of its outputs, with the labels of the channels that remain.
        shapes: of its outputs; None if any will do.
        groups: its number of groups, None if it has none.
    """

    step: Step
    layouts: Sequence[Layout]
    shapes: Sequence[Shape | None]
    groups: int | None


class Expectation:
    """What a narrower copy consists of.

    Args:
        recorded: the record of the network.

    Raises:
        ScalingError: what remains of a tensor is no tensor.

    Attributes:
        layouts: of the parameters and buffers, with the labels of the channels that remain.
        steps: what each operation does.
        sizes: for each module, by name, the numbers of channels that occur in it, and what becomes of each.
        groups: the number of groups that remain, by module, where groups are removed.
    """

    def __init__(self, recorded: Record) -> None:
        self._recorded = recorded
        self.layouts: dict[str, Layout] = {}
        self.steps: list[Expected] = []
        self.sizes: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        self.groups: dict[str, int] = {}
        for name, layout in recorded.layouts.items():
            before, self.layouts[name] = self._layouts(layout, name)
            self._count(name.rpartition(".")[0], before, self.layouts[name])
        for step in recorded.steps:
            self.steps.append(self._expected(step))

    def _expected(self, step: Step) -> Expected:
        layouts, shapes = [], []
        for layout, shape in zip(step.outcome.layouts, step.shapes, strict=True):
            if layout is None or layout.filled:
                layouts.append(layout or Layout())
                shapes.append(None)
                continue
            before, after = self._layouts(layout, step.where)
            self._count(step.module, before, after)
            layouts.append(after)
            shapes.append(_shape(shape, before, after))
        groups = step.outcome.groups
        if step.outcome.fewer:
            groups = groups * shapes[0][1] // step.shapes[0][1]
            self.groups[step.module] = groups
        return Expected(step, layouts, shapes, groups)

    def _layouts(self, layout: Layout, where: str) -> tuple[Layout, Layout]:
        factors = [collapsed(self._recorded.sets.find(factor)) for factor in layout.factors]
        factors = [factor for factor in factors if dims_of(factor)]
        left = [restricted(factor, self._recorded.kept) for factor in factors]
        if any(factor is None for factor in left):
            raise ScalingError(where, "a narrower copy would keep different numbers of channels in its rows")
        return Layout(tuple(factors), layout.filled), Layout(tuple(left), layout.filled)

    def _count(self, module: str, before: Layout, after: Layout) -> None:
        for factor, left in zip(before.factors, after.factors, strict=True):
            for d in dims_of(factor):
                name = module
                while True:
                    self.sizes[name][factor.shape[d]].add(left.shape[d])
                    if not name:
                        break
                    name = name.rpartition(".")[0]


def _shape(shape: Shape, before: Layout, after: Layout) -> Shape:
    sizes = list(shape)
    for factor, left in zip(before.factors, after.factors, strict=True):
        for d in dims_of(factor):
            sizes[d] = left.shape[d]
    return tuple(sizes)
