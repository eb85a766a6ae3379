"""One graph for training and evaluation, from a graph of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from oekd_fast.models.any_network.errors import with_factory_form
from oekd_fast.models.any_network.trace import Trace, trace_network


class ByMode(nn.Module):
    """A constant of a forward pass that differs between training and evaluation, such as ``self.training``.

    Args:
        training: value in training mode.
        evaluation: value in evaluation mode.
    """

    def __init__(self, training: Any, evaluation: Any) -> None:
        super().__init__()
        self.in_training, self.in_evaluation = training, evaluation

    def forward(self) -> Any:
        """Return the value of the present mode."""
        return self.in_training if self.training else self.in_evaluation

    def copy(self) -> ByMode:
        """Return another module with the same values."""
        return ByMode(self.in_training, self.in_evaluation)

    def extra_repr(self) -> str:
        return f"training={self.in_training!r}, evaluation={self.in_evaluation!r}"


def trace_modes(network: nn.Module, enter: Iterable[str] = ()) -> tuple[Trace, dict[str, ByMode]]:
    """Trace `network` in training and in evaluation mode, and return one graph that computes both.

    Args:
        network: see `trace_network`; every module has its former mode afterwards.
        enter: see `trace_network`. A module whose operations differ between the modes stays whole.

    Returns:
        The trace, and the modules that its graph calls for constants that differ between the modes, by name.

    Raises:
        CutError: see `trace_network`; or the operations of the network itself differ between the modes.
    """
    modes = {module: module.training for module in network.modules()}
    inside = frozenset(enter)
    try:
        while True:
            trained, evaluated = (trace_network(network.train(mode), inside) for mode in (True, False))
            if trained.enter != evaluated.enter:
                inside = trained.enter & evaluated.enter
                continue
            different, other = _difference(trained.graph, evaluated.graph)
            if different is None:
                return evaluated, _merge(trained.graph, evaluated.graph)
            whole = _entered_around(evaluated, different) or _entered_around(trained, other)
            if whole is None:
                raise with_factory_form(
                    f"the forward of {type(network).__name__} has other operations in training than in evaluation, "
                    f"from {different.name!r} on"
                )
            inside = inside - {whole}
    finally:
        for module, mode in modes.items():
            module.training = mode


def _difference(trained: fx.Graph, evaluated: fx.Graph) -> tuple[fx.Node | None, fx.Node | None]:
    """Return the first node of `evaluated` whose operation differs, and that of `trained` at its position."""
    others = iter(trained.nodes)
    partner: dict[fx.Node, fx.Node] = {}
    for node in evaluated.nodes:
        other = next(others, None)
        if other is None or (node.op, node.target) != (other.op, other.target):
            return node, other
        partner[node] = other
        inputs = [partner.get(each) for each in node.all_input_nodes]
        if inputs != other.all_input_nodes or _shape((node.args, node.kwargs)) != _shape((other.args, other.kwargs)):
            return node, other
    return None, None


def _shape(arguments: Any) -> Any:
    """Return the structure of arguments: their containers and the places of nodes in them, without constants."""
    if isinstance(arguments, dict):
        return {name: _shape(value) for name, value in arguments.items()}
    if isinstance(arguments, tuple | list):
        return [_shape(value) for value in arguments]
    return isinstance(arguments, fx.Node)


def _merge(trained: fx.Graph, evaluated: fx.Graph) -> dict[str, ByMode]:
    """Replace constants of `evaluated` that differ from those of `trained` by calls of modules, which are returned."""
    by_mode: dict[str, ByMode] = {}

    def merged(value: Any, other: Any, node: fx.Node) -> Any:
        if isinstance(value, fx.Node):
            return value
        if isinstance(value, dict):
            return {name: merged(value[name], other[name], node) for name in value}
        if isinstance(value, tuple | list):
            return type(value)(merged(mine, its, node) for mine, its in zip(value, other, strict=True))
        if type(value) is type(other) and value == other:
            return value
        name = f"by_mode_{len(by_mode)}"
        by_mode[name] = ByMode(other, value)
        with evaluated.inserting_before(node):
            return evaluated.call_module(name)

    for node, other in zip(list(evaluated.nodes), trained.nodes, strict=True):
        node.args = merged(node.args, other.args, node)
        node.kwargs = merged(node.kwargs, other.kwargs, node)
    return by_mode


def _entered_around(trace: Trace, node: fx.Node | None) -> str | None:
    """Return the innermost module that was entered by request and whose operations hold `node`."""
    if node is None:
        return None
    position = {each: i for i, each in enumerate(trace.graph.nodes)}
    around = [
        call.path
        for call in trace.calls
        if call.path in trace.enter and position[call.before] < position[node] <= position.get(call.output, -1)
    ]
    return around[-1] if around else None
