"""The modules into which a traced network is cut. They share the submodules and parameters of the network."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, fx, nn

from oekd_fast.models.any_network.map_views import as_map, from_map
from oekd_fast.models.any_network.modes import ByMode
from oekd_fast.models.any_network.trace import Trace
from oekd_fast.models.any_network.values import Values, is_free

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


@dataclass(frozen=True)
class Seam:
    """A place between two pieces.

    Args:
        node: name of the node that leads from one piece to the next.
        axis: dimension of its channels.
        ndim: number of its dimensions.
    """

    node: str
    axis: int
    ndim: int


@dataclass(frozen=True)
class Pieces:
    """A network in pieces: base, blocks, classifier.

    Args:
        base: images [B, C_in, H, W] -> map [B, C, H', W'].
        stages: the first takes the map of the base; each returns the tensor at its seam, which the next one takes.
        classifier: takes the tensor after the last stage; -> logits [B, num_classes].
    """

    base: fx.GraphModule
    stages: tuple[fx.GraphModule, ...]
    classifier: fx.GraphModule

    def eval(self) -> Pieces:
        """Set evaluation mode, and return the pieces."""
        for piece in (self.base, *self.stages, self.classifier):
            piece.eval()
        return self


def build_pieces(
    network: nn.Module,
    trace: Trace,
    by_mode: Mapping[str, ByMode],
    values: Values,
    positions: Mapping[fx.Node, int],
    seams: Sequence[Seam],
    entry: nn.Module | None = None,
) -> Pieces:
    """Cut `network`.

    Args:
        network: the network, or one of the same structure, whose submodules the pieces share.
        trace, by_mode: from `trace_modes`.
        values: from `record_values`.
        positions: from `cut_positions`.
        seams: the seam after the base, and the one after each block.
        entry: module that the first stage applies to the map of the base, before its own operations.
    """
    nodes = list(trace.graph.nodes)
    by_name = {node.name: node for node in nodes}
    resolve = _resolver(network, trace, by_mode)
    builder = _Builder(nodes, values, resolve, set(network.state_dict()))
    ends = [positions[by_name[seam.node]] for seam in seams]
    first = seams[0]
    base = builder.piece(
        0, ends[0], nodes[0], by_name[first.node], finish=lambda x: _as_map(x, first), class_name="Base"
    )
    stages = []
    for b, (before, seam) in enumerate(pairwise(seams)):
        stages.append(
            builder.piece(
                ends[b],
                ends[b + 1],
                by_name[before.node],
                by_name[seam.node],
                begin=(lambda x: _from_map(x, first)) if b == 0 else None,
                entry=entry if b == 0 else None,
                class_name="Block",
            )
        )
    last = seams[-1]
    classifier = builder.piece(
        ends[-1],
        len(nodes) - 2,
        by_name[last.node],
        nodes[-1].args[0],
        begin=(lambda x: _from_map(x, first)) if len(seams) == 1 else None,
        class_name="Classifier",
    )
    return Pieces(base, tuple(stages), classifier)


def whole_module(network: nn.Module, trace: Trace, by_mode: Mapping[str, ByMode]) -> fx.GraphModule:
    """Return one module that runs the whole graph of `trace` on the submodules of `network`."""
    resolve = _resolver(network, trace, by_mode)
    targets = {node.target for node in trace.graph.nodes if node.op in ("call_module", "get_attr")}
    return fx.GraphModule({target: resolve(target) for target in targets}, trace.graph)


def _work_out_of_place(node: fx.Node) -> None:
    """Have an operation leave its input as it is, since the family returns it or other students read it."""
    if node.op == "call_function":
        node.target = _OUT_OF_PLACE.get(node.target, node.target)
        if node.kwargs.get("inplace") is True:
            node.update_kwarg("inplace", False)


def _as_map(x: fx.Proxy, seam: Seam) -> fx.Proxy:
    return x if (seam.axis, seam.ndim) == (1, 4) else x.tracer.create_proxy("call_function", as_map, (x, seam.axis), {})


def _from_map(x: fx.Proxy, seam: Seam) -> fx.Proxy:
    if (seam.axis, seam.ndim) == (1, 4):
        return x
    return x.tracer.create_proxy("call_function", from_map, (x, seam.axis, seam.ndim), {})


def _resolver(network: nn.Module, trace: Trace, by_mode: Mapping[str, ByMode]) -> Callable[[str], Any]:
    def resolve(target: str) -> Any:
        if target in by_mode:
            return by_mode[target].copy()
        if target in trace.constants:
            return trace.constants[target]
        path, _, name = target.rpartition(".")
        return getattr(network.get_submodule(path), name)

    return resolve


class _Builder:
    def __init__(
        self, nodes: list[fx.Node], values: Values, resolve: Callable[[str], Any], persistent: set[str]
    ) -> None:
        self._nodes, self._values, self._resolve, self._persistent = nodes, values, resolve, persistent

    def piece(
        self,
        after: int,
        last: int,
        source: fx.Node,
        result: fx.Node,
        *,
        begin: Callable[[fx.Proxy], fx.Proxy] | None = None,
        finish: Callable[[fx.Proxy], fx.Proxy] | None = None,
        entry: nn.Module | None = None,
        class_name: str,
    ) -> fx.GraphModule:
        """Return the module that computes the nodes at the positions `after` + 1 to `last`."""
        graph = fx.Graph()
        tracer = fx.proxy.GraphAppendingTracer(graph)
        inputs = graph.placeholder("x")
        x = fx.Proxy(inputs, tracer)
        root: dict[str, Any] = {}
        if entry is not None:
            root["entry"] = entry
            x = tracer.create_proxy("call_module", "entry", (x,), {})
        if begin is not None:
            x = begin(x)
        copies = {source: x.node}

        def copied(node: fx.Node) -> fx.Node:
            if node not in copies:
                if node in self._values.batch_sizes:
                    copies[node] = graph.call_method("size", (inputs, 0))
                else:  # an attribute or a constant of the mode, which may lie outside
                    copies[node] = graph.node_copy(node, copied)
            return copies[node]

        inside = [n for n in self._nodes[after + 1 : last + 1] if not is_free(n, self._values)]
        only_sizes = {n for n in inside if n.users and all(user in self._values.batch_sizes for user in n.users)}
        for node in inside:
            if node not in only_sizes:
                copies[node] = graph.node_copy(node, copied)
                if node.args and node.args[0] is source:
                    _work_out_of_place(copies[node])
        y = fx.Proxy(copied(result), tracer)
        graph.output((y if finish is None else finish(y)).node)
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr") and node.target not in root:
                root[node.target] = self._resolve(node.target)
        module = fx.GraphModule(root, graph, class_name)
        self._keep_persistence(module)
        return module

    def _keep_persistence(self, module: fx.GraphModule) -> None:
        """Leave buffers out of the state dict which are not in that of the network."""
        for node in module.graph.nodes:
            if node.op != "get_attr" or node.target in self._persistent:
                continue
            path, _, name = node.target.rpartition(".")
            owner = module.get_submodule(path)
            value = getattr(owner, name)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                delattr(owner, name)
                owner.register_buffer(name, value, persistent=False)
