"""The parts of a traced network that follow each other, between which it may be cut into blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from oekd_fast.models.any_network.trace import ModuleCall, Trace

_MOST_BLOCKS = 5  # more parts than that are merged
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Unit:
    """Part of a network that is not cut.

    Args:
        name: qualified name of its last module.
        begin: node before its first one.
        output: node that alone leads on after it.
    """

    name: str
    begin: fx.Node
    output: fx.Node


def block_class(network: nn.Module) -> type[nn.Module] | None:
    """Return the class of the blocks that `network` repeats; None if it repeats no module of several layers.

    A module that itself is a series of such blocks, as a stage of a ConvNeXt is, is not one.
    """
    kind, inside = None, [network]
    while True:
        modules = [m for outer in inside for m in outer.modules() if m is not outer]
        finer = _most_repeated(modules)
        if finer is None:
            return kind
        if kind is not None and not all(_is_series(outer, finer) for outer in inside):
            return kind
        kind, inside = finer, [m for m in modules if type(m) is finer]


def find_units(
    network: nn.Module, trace: Trace, positions: Mapping[fx.Node, int], places: Mapping[fx.Node, int]
) -> list[Unit]:
    """Return the parts that follow each other; what is before them is a stem, and what is after them the classifier.

    Where the network calls modules of one class again and again, the parts are these modules, or the named modules
    around them (such as layer1 to layer4). Otherwise each part is one layer with weights and what follows it.

    Args:
        positions: from `cut_positions`.
        places: number of places (height times width) of each node of `positions`.
    """
    calls: dict[str, list[ModuleCall]] = defaultdict(list)
    for call in trace.calls:
        calls[call.path].append(call)
    once = {path: found[0] for path, found in calls.items() if len(found) == 1}
    return _named_units(network, trace, once, positions) or _layer_units(network, trace, positions, places)


def merged_units(units: Sequence[Unit], places: Mapping[fx.Node, int]) -> list[Unit]:
    """Return at most a few blocks, each of several units if there are many.

    Up to five units are blocks. More are merged up to the last one of each size of maps, or into 4 or 3 blocks of equal
    depth if all maps have one size.
    """
    if len(units) <= _MOST_BLOCKS:
        return list(units)
    last = len(units) - 1
    ends = [i for i, u in enumerate(units) if i == last or places[u.output] != places[units[i + 1].output]]
    if len(ends) == 1:
        count = next((c for c in (4, 3) if len(units) % c == 0), 4)
        ends = [len(units) * (b + 1) // count - 1 for b in range(count)]
    begins = [0, *[end + 1 for end in ends[:-1]]]
    return [
        Unit(units[end].name, units[begin].begin, units[end].output) for begin, end in zip(begins, ends, strict=True)
    ]


def _named_units(
    network: nn.Module, trace: Trace, once: Mapping[str, ModuleCall], positions: Mapping[fx.Node, int]
) -> list[Unit]:
    whole = {path: call for path, call in once.items() if not call.entered and call.output in positions}
    kind = _most_repeated(network.get_submodule(path) for path in whole)
    if kind is None:
        return []
    blocks = [path.split(".") for path in whole if type(network.get_submodule(path)) is kind]
    depth = _common_depth(blocks)
    # The children of the innermost module around all blocks, in the order of their calls.
    calls: dict[str, list[ModuleCall]] = defaultdict(list)
    for call in trace.calls:
        parts = call.path.split(".")
        if parts[:depth] == blocks[0][:depth] and len(parts) > depth:
            calls[".".join(parts[: depth + 1])].append(call)
    children = list(calls)
    holding = [children.index(".".join(block[: depth + 1])) for block in blocks]
    outputs = [(once.get(child) or calls[child][-1]).output for child in children]
    kinds = [type(network.get_submodule(child)) for child in children]
    ndim = len(outputs[min(holding)].meta["shape"])

    def alike(child: int, neighbour: int) -> bool:
        same = kinds[child] is kinds[neighbour] and outputs[child] in positions
        return same and len(outputs[child].meta["shape"]) == ndim

    # The first or last child of a container may hold other blocks, as in a MobileNetV3.
    ends = set(holding)
    while min(ends) > 0 and alike(min(ends) - 1, min(ends)):
        ends.add(min(ends) - 1)
    while max(ends) + 1 < len(children) and alike(max(ends) + 1, max(ends)):
        ends.add(max(ends) + 1)
    units, begin = [], calls[children[min(ends)]][0].before
    for end in sorted(ends):
        if outputs[end] in positions:  # else it belongs to the next unit, as do transitions between blocks
            units.append(Unit(children[end], begin, outputs[end]))
            begin = outputs[end]
    return units


def _layer_units(
    network: nn.Module, trace: Trace, positions: Mapping[fx.Node, int], places: Mapping[fx.Node, int]
) -> list[Unit]:
    """Return a unit for each layer with weights but the last one, which is the classifier.

    A unit ends where its layer's size of maps does, so that pooling belongs to the next one.
    """
    nodes = list(trace.graph.nodes)
    layers = [i for i, n in enumerate(nodes) if n.op == "call_module" and _is_layer(network, n.target)]
    units: list[Unit] = []
    begin = nodes[0]
    for layer, following in zip(layers, layers[1:], strict=False):
        ends = [
            n
            for n in nodes[layer:following]
            if n in positions
            and positions[n] < following
            and len(n.meta["shape"]) == len(nodes[layers[0]].meta["shape"])
            and places[n] == places.get(nodes[layer], places[n])
        ]
        if ends:
            name = next(n.target for n in reversed(nodes[: nodes.index(ends[-1]) + 1]) if n.op == "call_module")
            units.append(Unit(name, begin, ends[-1]))
            begin = ends[-1]
    return units


def _is_layer(network: nn.Module, path: str) -> bool:
    try:
        module = network.get_submodule(path)
    except AttributeError:  # a constant that depends on the mode
        return False
    return any(p.ndim > 1 for p in module.parameters())


def _most_repeated(modules: Iterable[nn.Module]) -> type[nn.Module] | None:
    """Return the class of which there are at least two modules of several layers, and whose hold the most weights."""
    found: dict[type[nn.Module], list[nn.Module]] = defaultdict(list)
    for module in modules:
        if type(module) not in _CONTAINERS and _layers(module) > 1:
            found[type(module)].append(module)
    repeated = {kind: _size(of_kind) for kind, of_kind in found.items() if len(of_kind) > 1}
    return max(repeated, key=repeated.__getitem__) if repeated else None


def _is_series(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `module` has a container of modules of `kind`, or all its children with parameters are of `kind`."""
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    series = [list(child) for child in children if isinstance(child, nn.Sequential | nn.ModuleList)]
    return any(modules and all(type(m) is kind for m in modules) for modules in [*series, children])


def _layers(module: nn.Module) -> int:
    return sum(any(p.ndim > 1 for p in part.parameters(recurse=False)) for part in module.modules())


def _size(modules: Iterable[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def _common_depth(paths: Sequence[Sequence[str]]) -> int:
    """Return the number of leading names that all `paths` share, without their last ones."""
    depth = 0
    while all(len(path) > depth + 1 and path[depth] == paths[0][depth] for path in paths):
        depth += 1
    return depth
