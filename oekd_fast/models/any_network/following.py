"""Runs a network and follows its channels from operation to operation."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # the interface that PyTorch documents for such tools
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from oekd_fast.models.any_network.calls import Call, Unsupported
from oekd_fast.models.any_network.channel_sets import ChannelSets
from oekd_fast.models.any_network.layouts import Layout, Operand
from oekd_fast.models.any_network.operations import apply, is_copy
from oekd_fast.models.any_network.scaling_errors import ScalingError
from oekd_fast.models.any_network.scores import query_labels, scale_of
from oekd_fast.models.any_network.steps import Step

_TORCH, _HERE = str(Path(torch.__file__).parent), str(Path(__file__).parent)


class Modules:
    """The modules whose forward is running, the innermost last; hooks of the network keep the list."""

    def __init__(self) -> None:
        self._running: list[tuple[str, str]] = []

    @property
    def name(self) -> str:
        """Name of the innermost module, "" for the network itself."""
        return self._running[-1][0] if self._running else ""

    def where(self, operation: str, error: Exception | None = None) -> str:
        """Return the innermost module, the operation, and the line of code that runs or raised `error`."""
        name, kind = self._running[-1] if self._running else ("", "forward")
        frames = traceback.walk_stack(None) if error is None else reversed(list(traceback.walk_tb(error.__traceback__)))
        return f"{name} ({kind}): {operation}{_line(frames)}" if name else f"{kind}: {operation}{_line(frames)}"

    @contextmanager
    def watched(self, network: nn.Module) -> Iterator[None]:
        """Keep the list while `network` runs."""
        with ExitStack() as hooks:
            for name, module in network.named_modules():
                label = (name, type(module).__name__)
                before = module.register_forward_pre_hook(lambda *_, label=label: self._running.append(label))
                after = module.register_forward_hook(lambda *_, label=label: self._leave(label))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            yield

    def _leave(self, label: tuple[str, str]) -> None:
        while self._running.pop() != label:  # modules in which an error was raised that the network handled
            pass


class Following(TorchDispatchMode):
    """Runs operations and joins the channels that they combine.

    Args:
        sets: the channels.
        tensors: parameters and buffers of the network, by name.
        width: returns the scaled number of channels.
        modules: the modules that are running.
    """

    def __init__(
        self, sets: ChannelSets, tensors: dict[str, Tensor], width: Callable[[int], int], modules: Modules
    ) -> None:
        super().__init__()
        self.sets, self.steps = sets, []
        self.layouts_of_tensors: dict[str, Layout] = {}
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._width, self._modules = width, modules
        self._layouts = WeakTensorKeyDictionary()

    def layout(self, tensor: Tensor) -> Layout:
        """Return the channels of a tensor; a parameter or buffer that is read for the first time receives labels."""
        if tensor not in self._layouts:
            layout = Layout()
            if id(tensor) in self._names:
                layout = Layout(tuple(self._new_labels(tensor)))
                self.layouts_of_tensors[self._names[id(tensor)]] = layout
            self._layouts[tensor] = layout
        return self._layouts[tensor]

    def fix(self, result: object) -> None:
        """Keep the channels of all tensors in `result`."""
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                for factor in self.layout(tensor).factors:
                    self.sets.fix(factor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        operands = {id(tensor): Operand(self.layout(tensor), tuple(tensor.shape)) for tensor in given}
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        name = func.overloadpacket.__name__
        where = self._modules.where(name)
        call = Call(name, func, args, kwargs, operands, outputs, where, self._width)
        queries = query_labels(self.sets, call)
        try:
            outcome = apply(self.sets, call)
        except Unsupported as error:
            raise ScalingError(where, str(error)) from None
        for tensor, layout in zip(outputs, outcome.layouts, strict=True):
            self._layouts[tensor] = layout or Layout()
        if is_copy(name):
            return result
        shapes = tuple(tuple(tensor.shape) for tensor in outputs)
        self.steps.append(Step(name, self._modules.name, where, outcome, shapes, scale_of(call), queries))
        return result

    def _new_labels(self, tensor: Tensor) -> Iterator[Tensor]:
        for d, size in enumerate(tensor.shape):
            if size > 1:
                yield self.sets.new(size).reshape([-1 if e == d else 1 for e in range(tensor.ndim)])


class ContiguousInputs(TorchFunctionMode):
    """Makes the inputs of linear layers contiguous; otherwise PyTorch chooses its operations by strides and sizes."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is nn.functional.linear and args:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **kwargs or {})


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """Run `network` in evaluation mode, without gradients, in plain operations, and restore random generators."""
    training = {name: module.training for name, module in network.named_modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    network.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(), sdpa_kernel(SDPBackend.MATH), ContiguousInputs():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for name, module in network.named_modules():
            module.training = training[name]


def run(network: nn.Module, inputs: Sequence[Tensor], modules: Modules, prefix: str = "") -> object:
    """Return `network(*inputs)`.

    Raises:
        ScalingError: the network fails; the message starts with `prefix`.
    """
    try:
        return network(*inputs)
    except ScalingError:
        raise
    except Exception as error:
        raise ScalingError(modules.where(type(error).__name__, error), f"{prefix}{error}") from error


@contextmanager
def outputs_of(network: nn.Module, names: Sequence[str]) -> Iterator[list[object]]:
    """Collect the outputs of the named modules while `network` runs."""
    with ExitStack() as hooks:
        outputs: list[object] = []
        for name in names:
            hook = network.get_submodule(name).register_forward_hook(lambda m, i, output: outputs.append(output))
            hooks.callback(hook.remove)
        yield outputs


def _line(frames: Iterable[tuple[FrameType, int]]) -> str:
    """Return " (file:line)" of the first frame outside PyTorch and this package, "" if there is none."""
    for frame, line in frames:
        path = frame.f_code.co_filename
        if not path.startswith((_TORCH, _HERE, "<")):
            return f" ({os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path}:{line})"
    return ""
