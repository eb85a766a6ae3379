"""Graph of a network by torch.fx, in which modules stay whole unless a cut needs to look inside them."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from oekd_fast.models.any_network.errors import with_factory_form

_LIBRARY = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module in the forward pass of a network.

    Args:
        path: qualified name of the module.
        before: last node of the graph when the call began.
        output: node that the call returned; None if it returned anything but one value.
        entered: whether the graph holds the operations of the module rather than a call of it.
        around: qualified name of the innermost entered module around the call; empty for the network itself.
    """

    path: str
    before: fx.Node
    output: fx.Node | None
    entered: bool
    around: str


@dataclass(frozen=True)
class Trace:
    """Graph of one forward pass of a network.

    Args:
        graph: the graph: one placeholder, and one output.
        calls: all calls of modules, in the order in which they begin.
        enter: the modules of the argument `enter` of `trace_network` whose operations the graph holds.
        constants: tensors that the forward uses without their being attributes of the network, by the names that the
            graph has for them.
    """

    graph: fx.Graph
    calls: tuple[ModuleCall, ...]
    enter: frozenset[str]
    constants: dict[str, Tensor]


def trace_network(network: nn.Module, enter: Iterable[str] = ()) -> Trace:
    """Trace the forward pass of `network` in its present mode; the network itself is not run.

    The graph holds the operations of the forward of `network` itself and of ``torch.nn.Sequential``, and calls of all
    other modules.

    Args:
        network: takes one tensor. Other arguments of its forward keep their defaults.
        enter: qualified names of further modules whose operations the graph holds.

    Raises:
        CutError: the operations depend on the values or the shape of the input; the message names the line. A module
            of `enter` for which this is the case stays whole instead.
    """
    enter, own = set(enter), set(vars(network))
    while True:
        tracer = _Tracer(enter)
        try:
            graph = tracer.trace(network, _defaults(network))
        except Exception as error:
            failed = tracer.failed_in
            if failed is not None and failed in enter:
                enter.discard(failed)
                continue
            raise with_factory_form(
                f"the forward of {type(network).__name__} cannot be traced: {_place(error)}"
            ) from error
        _keep_first_input(graph)
        calls = tuple(call for call in tracer.calls if call is not None)
        return Trace(graph, calls, frozenset(enter), _take_constants(network, graph, own))


class _Tracer(fx.Tracer):
    def __init__(self, enter: set[str]) -> None:
        super().__init__(autowrap_functions=_functions_of_timm(), param_shapes_constant=True)
        self.calls: list[ModuleCall | None] = []
        self.failed_in: str | None = None
        self._enter = enter
        self._open: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) is nn.Sequential:
            return False
        return module_qualified_name not in self._enter

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        path = self.path_of_module(m)
        entered, position = not self.is_leaf_module(m, path), len(self.calls)
        before, around = next(reversed(self.graph.nodes)), self._open[-1] if self._open else ""
        self.calls.append(None)
        if entered:
            self._open.append(path)
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = next((open_ for open_ in reversed(self._open) if open_ in self._enter), None)
            raise
        if entered:
            self._open.pop()
        output = result.node if isinstance(result, fx.Proxy) else None
        self.calls[position] = ModuleCall(path, before, output, entered, around)
        return result


def _functions_of_timm() -> tuple[Callable, ...]:
    """Return the functions that timm marks as untraceable, if timm is loaded."""
    if "timm.layers" not in sys.modules:
        return ()
    from timm.layers import get_notrace_functions

    return tuple(get_notrace_functions())


def _defaults(network: nn.Module) -> dict[str, Any]:
    """Return the defaults of all arguments of the forward but the first."""
    arguments = list(inspect.signature(network.forward).parameters.values())[1:]
    return {a.name: a.default for a in arguments if a.default is not a.empty}


def _keep_first_input(graph: fx.Graph) -> None:
    """Remove the placeholders of arguments that have their defaults, and the assertions that they do."""
    _, *others = [node for node in graph.nodes if node.op == "placeholder"]
    for placeholder in others:
        found = [placeholder]
        for node in found:
            found += [user for user in node.users if user not in found]
        for node in reversed(found):
            graph.erase_node(node)


def _take_constants(network: nn.Module, graph: fx.Graph, own: set[str]) -> dict[str, Tensor]:
    """Remove from `network` the tensors that the tracer has stored there, and return them."""
    added = set(vars(network)) - own
    names = {node.target for node in graph.nodes if node.op == "get_attr"} & added
    constants = {name: getattr(network, name) for name in sorted(names)}
    for name in added:
        delattr(network, name)
    return constants


def _place(error: Exception) -> str:
    """Return what failed in one line, with the file, line and code of the last frame outside of PyTorch."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not f.filename.startswith(_LIBRARY) and f.filename != __file__]
    what = " ".join(f"{type(error).__name__}: {error}".split())
    if not outside:
        return what
    frame = outside[-1]
    return f"{frame.filename}:{frame.lineno}: {frame.line}: {what}"
