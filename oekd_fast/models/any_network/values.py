"""The intermediate results of a traced network: their shapes, and the places where one tensor alone leads on."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx


@dataclass(frozen=True)
class Values:
    """Intermediate results of one forward pass.

    Args:
        output: what the network returned.
        shapes: shape of each tensor.
        batch_sizes: nodes whose value is the number of images, read from the shape of a tensor.
    """

    output: Any
    shapes: Mapping[fx.Node, tuple[int, ...]]
    batch_sizes: Set[fx.Node]


def record_values(module: fx.GraphModule, graph: fx.Graph, images: Tensor) -> Values:
    """Run `module` on `images` [B, C, H, W] without gradients. `graph` is the one that `module` was made from."""
    recorder = _Recorder(module)
    with torch.no_grad():
        output = recorder.run(images)
    shapes = {n: recorder.shapes[n.name] for n in graph.nodes if n.name in recorder.shapes}
    batch = {n for n in graph.nodes if n.name in recorder.integers and shapes.get(_sized(n), (0,))[0] == len(images)}
    return Values(output, shapes, batch)


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.integers: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "output":
            self.shapes[n.name] = tuple(result.shape)
        elif type(result) is int:
            self.integers.add(n.name)
        return result


def _sized(node: fx.Node) -> fx.Node | None:
    """Return the tensor of which `node` reads the size of the first dimension; None for other nodes."""
    if node.op == "call_function" and node.target is operator.getitem and node.args[1] == 0:
        node = node.args[0]
        if (node.op, node.target) == ("call_function", getattr) and node.args[1] == "shape":
            return node.args[0]
        if (node.op, node.target, len(node.args)) == ("call_method", "size", 1):
            return node.args[0]
    elif (node.op, node.target) == ("call_method", "size") and node.args[1:] == (0,):
        return node.args[0]
    return None


def is_free(node: fx.Node, values: Values) -> bool:
    """Whether each piece of a network can compute `node` itself: an attribute, a constant, or the batch size."""
    return node.op == "get_attr" or node in values.batch_sizes or (node.op == "call_module" and not node.args)


def live_values(graph: fx.Graph, values: Values) -> list[list[fx.Node]]:
    """Return for each position of `graph` the results that later nodes need, without those that are free."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    last = {
        node: max(position[user] for user in node.users)
        for node in graph.nodes
        if node.users and not is_free(node, values)
    }
    return [[node for node in last if position[node] <= i < last[node]] for i in range(len(position))]


def cut_positions(graph: fx.Graph, values: Values, batch: int) -> dict[fx.Node, int]:
    """Return the nodes that alone lead on, each with the first position after which that is the case.

    They are tensors of 2 to 4 dimensions, the first of which is the batch. The input itself is one of them.
    """
    found: dict[fx.Node, int] = {}
    for i, live in enumerate(live_values(graph, values)):
        shape = values.shapes.get(live[0], ()) if len(live) == 1 else ()
        if 2 <= len(shape) <= 4 and shape[0] == batch:
            found.setdefault(live[0], i)
    return found
