"""The cut of a network into a base, blocks and a classifier: found in its graph, or given by names of modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise, zip_longest
from math import prod

from torch import Tensor, fx, nn

from oekd_fast.models.any_network.errors import CutError, with_factory_form
from oekd_fast.models.any_network.map_views import map_shape
from oekd_fast.models.any_network.modes import ByMode, trace_modes
from oekd_fast.models.any_network.pieces import Pieces, Seam, build_pieces, whole_module
from oekd_fast.models.any_network.trace import Trace
from oekd_fast.models.any_network.units import find_units, merged_units
from oekd_fast.models.any_network.values import Values, cut_positions, live_values, record_values


@dataclass(frozen=True)
class Cut:
    """A cut that holds for all students of a family.

    Args:
        enter: qualified names of the modules that are cut inside.
        names: qualified names of the last module of the base and of each block.
        seams: the places after the base and after each block.
        shapes: shape (B, C, H, W) of the map at each seam, of the largest student.
    """

    enter: frozenset[str]
    names: tuple[str, ...]
    seams: tuple[Seam, ...]
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TracedNetwork:
    """The graph of a network and its intermediate results, for networks of one structure.

    Args:
        trace, by_mode: from `trace_modes`.
        values: from `record_values`.
        positions: from `cut_positions`.
    """

    trace: Trace
    by_mode: dict[str, ByMode]
    values: Values
    positions: Mapping[fx.Node, int]

    @classmethod
    def of(cls, network: nn.Module, images: Tensor, enter: Iterable[str] = ()) -> TracedNetwork:
        """Trace `network` and run it on `images` in evaluation mode.

        Raises:
            CutError: the graph cannot be followed, or the network does not return logits [B, C].
        """
        trace, by_mode = trace_modes(network.eval(), enter)
        for module in by_mode.values():
            module.eval()
        values = record_values(whole_module(network, trace, by_mode), trace.graph, images)
        if not isinstance(values.output, Tensor) or values.output.ndim != 2 or len(values.output) != len(images):
            raise with_factory_form(f"expected logits [{len(images)}, C] as the output, got {_kind(values.output)}")
        for node, shape in values.shapes.items():
            node.meta["shape"] = shape
        return cls(trace, by_mode, values, cut_positions(trace.graph, values, len(images)))

    def pieces(self, network: nn.Module, cut: Cut, entry: nn.Module | None = None) -> Pieces:
        """Cut `network`, which has the structure that was traced, at the seams of `cut`."""
        return build_pieces(network, self.trace, self.by_mode, self.values, self.positions, cut.seams, entry)

    def modules_of_base(self, cut: Cut) -> list[str]:
        """Return the names of the modules that the base calls, in their order."""
        names = []
        for node in self.trace.graph.nodes:
            if node.op == "call_module" and node.target not in self.by_mode:
                names.append(node.target)
            if node.name == cut.seams[0].node:
                break
        return names

    def shape_at(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of the tensor of the node `name`; None if there is none."""
        return next((shape for node, shape in self.values.shapes.items() if node.name == name), None)


def find_cut(
    network: nn.Module,
    images: Tensor,
    narrow: nn.Module | None = None,
    base: str | None = None,
    blocks: Sequence[str] | None = None,
) -> tuple[Cut, TracedNetwork]:
    """Return the cut of `network` and its trace.

    Args:
        network: the largest student, a copy that may be run.
        images: a batch [B, C, H, W].
        narrow: a smaller student; the dimension in which its maps differ is that of the channels. None: channels are
            the last dimension of tensors of three dimensions, and else dimension 1.
        base: qualified name of the last module of the base; None finds it.
        blocks: qualified names of the modules after which a map is returned; None finds them.

    Raises:
        CutError: the graph cannot be followed, a name does not fit, or there is no cut.
    """
    named = [*([] if base is None else [base]), *(blocks or ())]
    for name in named:
        _check_module(network, name, "base" if name == base else "blocks")
    enter = {around for name in named for around in _modules_around(name)}
    while True:
        whole = TracedNetwork.of(network, images, enter)
        small = None if narrow is None else TracedNetwork.of(narrow, images, enter)
        if small is not None:
            check_same_graph(whole, small, "a smaller student")
        search = _Search(network, whole, small)
        found = search.cut(base, blocks)
        if found is not None:
            return found, whole
        inner = search.largest_module(enter)
        if inner is None:
            raise with_factory_form(
                f"no blocks found in {type(network).__name__}; blocks= names the modules after which a map is returned"
            )
        enter.add(inner)


def check_same_graph(whole: TracedNetwork, other: TracedNetwork, what: str) -> None:
    """Raise CutError unless both networks run the same modules and operations in the same order."""
    pairs = zip_longest(whole.trace.graph.nodes, other.trace.graph.nodes)
    for mine, its in pairs:
        if mine is None or its is None or (mine.op, mine.name, mine.target) != (its.op, its.name, its.target):
            found = [f"{n.target}" if n is not None else "nothing" for n in (mine, its)]
            raise CutError(
                f"module: {what} has another structure than student 1: expected {found[0]!r} in its forward, "
                f"got {found[1]!r}"
            )


class _Search:
    """The search for the cut in one trace of a network."""

    def __init__(self, network: nn.Module, whole: TracedNetwork, small: TracedNetwork | None) -> None:
        self._network, self._whole = network, whole
        self._nodes = list(whole.trace.graph.nodes)
        self._index = {node: i for i, node in enumerate(self._nodes)}
        narrow = {} if small is None else {node.name: shape for node, shape in small.values.shapes.items()}
        self._axes = {n: _channel_axis(n.meta["shape"], narrow.get(n.name)) for n in whole.positions}
        self._maps = {n: map_shape(n.meta["shape"], axis) for n, axis in self._axes.items()}
        self._places = {n: prod(shape[2:]) for n, shape in self._maps.items()}

    def cut(self, base: str | None, blocks: Sequence[str] | None) -> Cut | None:
        """Return the cut, with what is not named found; None if there are no blocks."""
        units = find_units(self._network, self._whole.trace, self._whole.positions, self._places)
        ends = [] if blocks is None else [(name, self._named(name, "blocks")) for name in blocks]
        if base is not None:
            end = self._named(base, "base")
        else:
            begin = units[0].begin if units else self._nodes[0]
            if ends and self._index[begin] >= self._index[ends[0][1]]:
                begin = next(c.before for c in self._whole.trace.calls if c.path == ends[0][0])
            end = self._latest_before(begin)
            if end is None and ends:
                raise CutError(f"base: expected a module before {ends[0][0]!r}, got none that can be cut there")
            if end is None and units:
                end = units[0].output
            if end is None:
                return None
        if blocks is None:
            left = [unit for unit in units if self._index[unit.output] > self._index[end]]
            ends = [(unit.name, unit.output) for unit in merged_units(left, self._places)]
        if not ends:
            return None
        return self._checked([(base or self._last_module(end), end), *ends])

    def largest_module(self, tried: Set[str]) -> str | None:
        """Return the module with the most parameters that the graph holds as a whole and that has modules itself."""
        whole = [c.path for c in self._whole.trace.calls if not c.entered and c.path not in tried]
        sizes = {
            path: sum(p.numel() for p in self._network.get_submodule(path).parameters())
            for path in whole
            if len(list(self._network.get_submodule(path).children()))
        }
        return max(sizes, key=sizes.__getitem__) if sizes else None

    def _checked(self, found: Sequence[tuple[str, fx.Node]]) -> Cut:
        for (before, first), (after, second) in pairwise(found):
            if self._index[first] >= self._index[second]:
                argument = "base" if first is found[0][1] else "blocks"
                raise CutError(
                    f"{argument}: expected modules in the order of the forward pass, got {before!r} before {after!r}"
                )
        return Cut(
            frozenset(self._whole.trace.enter),
            tuple(name for name, _ in found),
            tuple(Seam(node.name, self._axes[node], len(node.meta["shape"])) for _, node in found),
            tuple(self._maps[node] for _, node in found),
        )

    def _named(self, name: str, argument: str) -> fx.Node:
        """Return the node after the module `name`."""
        calls = [call for call in self._whole.trace.calls if call.path == name]
        if len(calls) != 1:
            times = f"{len(calls)} times" if calls else "by no operation of the graph that can be followed"
            raise CutError(f"{argument}: expected a module that is called once, got {name!r}, which is called {times}")
        node = calls[0].output
        if node is None or node not in self._whole.positions:
            live = [] if node is None else live_values(self._whole.trace.graph, self._whole.values)[self._index[node]]
            others = ", ".join(repr(n.name) for n in live if n is not node) or "no tensor [B, ...]"
            raise CutError(
                f"{argument}: expected a module after which its output alone is needed, got {name!r}, after which "
                f"{others} {'is' if len(live) < 3 else 'are'} needed too"
            )
        return node

    def _latest_before(self, begin: fx.Node) -> fx.Node | None:
        """Return the last node up to `begin` that alone leads on, without the input of the network."""
        positions = self._whole.positions
        before = [n for n in positions if n.op != "placeholder" and positions[n] <= self._index[begin]]
        return max(before, key=positions.__getitem__) if before else None

    def _last_module(self, node: fx.Node) -> str:
        """Return the name of the outermost module that ends with `node`, or else of the last one up to it."""
        ending = [call.path for call in self._whole.trace.calls if call.output is node]
        if ending:
            return min(ending, key=lambda path: path.count("."))
        called = [n for n in self._nodes[: self._index[node] + 1] if n.op == "call_module" and n.args]
        return str(called[-1].target) if called else node.name


def _channel_axis(shape: tuple[int, ...], narrow: tuple[int, ...] | None) -> int:
    different = [] if narrow is None else [d for d, (a, b) in enumerate(zip(shape, narrow, strict=True)) if a != b]
    if len(different) == 1 and different[0] > 0:
        return different[0]
    return 2 if len(shape) == 3 else 1


def _check_module(network: nn.Module, name: str, argument: str) -> None:
    names = [path for path, _ in network.named_modules() if path]
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CutError(f"{argument}: expected the name of a module of {type(network).__name__}, got {name!r}{hint}")


def _modules_around(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _kind(output: object) -> str:
    return f"a tensor {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
