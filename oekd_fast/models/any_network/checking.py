"""Runs a narrower copy beside the record of its network, and compares operation by operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from oekd_fast.models.any_network import rules
from oekd_fast.models.any_network.calls import Call, Unsupported
from oekd_fast.models.any_network.expectation import Expected
from oekd_fast.models.any_network.following import Modules
from oekd_fast.models.any_network.kept_channels import KeptChannels
from oekd_fast.models.any_network.layouts import Layout, Operand, collapsed
from oekd_fast.models.any_network.operations import CONCATENATION, is_copy, is_movement, same_operation
from oekd_fast.models.any_network.scaling_errors import ScalingError
from oekd_fast.models.any_network.scores import scale_of


class Checking(TorchDispatchMode):
    """Runs the operations of a narrower copy and compares them with what is expected.

    Sizes are compared after every operation, and for operations that move channels, such as views, which channel is
    where. All others leave channels in their order.

    Args:
        steps: what each operation has to do.
        tensors: parameters and buffers of the copy, by name.
        layouts: their layouts, with the labels of the channels that remain.
        modules: the modules that are running.

    Attributes:
        ratios: for each module, by name, the product of the numbers by which it multiplies tensors, divided by that of
            the numbers of the copy.
    """

    def __init__(
        self, steps: Sequence[Expected], tensors: Mapping[str, Tensor], layouts: Mapping[str, Layout], modules: Modules
    ) -> None:
        super().__init__()
        self._steps, self._modules, self._position = steps, modules, 0
        self.ratios: dict[str, float] = {}
        self._layouts = WeakTensorKeyDictionary()
        for name, layout in layouts.items():
            self._layouts[tensors[name]] = layout

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if is_copy(name):
            result = func(*args, **kwargs)
            self._layouts[result] = self._layouts.get(args[0], Layout())
            return result
        step = self._next(name)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        operands = {id(x): Operand(self._layouts.get(x, Layout()), tuple(x.shape)) for x in given}
        try:
            result = func(*args, **kwargs)
        except RuntimeError as error:
            raise ScalingError(self._modules.where(name), f"a narrower copy fails: {error}") from error
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        call = Call(name, func, args, kwargs, operands, outputs, self._modules.where(name), _unscaled)
        self._compare(step, call)
        if (before := step.step.scale) is not None and (now := scale_of(call)) is not None:
            self.ratios[step.step.module] = self.ratios.get(step.step.module, 1.0) * before / now
        for tensor, layout in zip(outputs, step.layouts, strict=True):
            self._layouts[tensor] = layout
        return result

    def finish(self) -> None:
        """Check that no operation is missing.

        Raises:
            ScalingError: the copy ran fewer operations than the network.
        """
        if self._position < len(self._steps):
            name = self._steps[self._position].step.name
            raise ScalingError(self._modules.where("forward"), f"a narrower copy ends before the module calls {name}")

    def _next(self, name: str) -> Expected:
        step = self._steps[self._position] if self._position < len(self._steps) else None
        if step is None or not same_operation(step.step.name, name):
            wanted = "no more operations" if step is None else step.step.name
            raise ScalingError(self._modules.where(name), f"expected {wanted}, as in the module, in a narrower copy")
        self._position += 1
        return step

    def _compare(self, step: Expected, call: Call) -> None:
        for output, shape in zip(call.outputs, step.shapes, strict=True):
            if shape is not None and tuple(output.shape) != shape:
                raise ScalingError(
                    call.where, f"expected a result {list(shape)} in a narrower copy, got {list(output.shape)}"
                )
        groups = call.given(8, "groups") if call.name == "convolution" else call.given(6, "group")
        if step.groups is not None and groups != step.groups:
            raise ScalingError(call.where, f"expected {step.groups} groups in a narrower copy, got {groups}")
        if not is_movement(call.name) or not any(operand.layout.factors for operand in call.tensors()):
            return
        rule = rules.concatenate if call.name in CONCATENATION else rules.move
        try:
            moved = rule(KeptChannels(), call).layouts
        except Unsupported as error:
            raise ScalingError(call.where, str(error)) from None
        for layout, expected in zip(moved, step.layouts, strict=True):
            if not _same(layout, expected):
                raise ScalingError(call.where, "it moves other channels in a narrower copy than in the module")


def _same(layout: Layout, expected: Layout) -> bool:
    wanted = [factor for factor in map(collapsed, expected.factors) if factor.numel() > 1]
    return len(layout.factors) == len(wanted) and all(
        any(torch.equal(factor, other) for other in wanted) for factor in layout.factors
    )


def _unscaled(channels: int) -> int:
    return channels
