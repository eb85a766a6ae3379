"""Launches of the loss that are prepared once, and then repeated with other addresses and numbers.

The arguments of a kernel are described by where their values come from, as csrc/launch/prepared_launch.h takes
them: ``("input", i)`` is the address of an input; ``("block", i, offset)`` an address in one of the allocations that
each call makes, offset in bytes; ``("number", i)`` a number of the call; ``("constant", value)``; and
``("tuple", descriptions)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.launch import Launch
from .launch import gradients_launch, loss_launch
from .plan import MOST_ROWS_COUNTED
from .problem import Problem

NUMBERS = ("temperature", "ce_weight", "kd_weight")  # arguments that change from call to call
_SCRATCH = ("row_statistics", "partials", "chunk_statistics", "counted")  # buffers that nobody reads after the launch
_COUNTERS = ("counters", "done")  # zeros that each launch leaves as zeros; see common/counters.py
_ALIGNMENT = 16  # bytes
# Gradients of at most this many bytes in all share an allocation, which saves time on the host. Larger ones do not, so
# that each one's memory is free when that one is.
_SHARED_BYTES = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """One launch of a kernel.

    Attributes:
        launch: the launch with the tensors that it was planned with.
        arguments: where the value of each argument comes from, in the order of the kernel's parameters.
        blocks: bytes of each allocation.
        outputs: (block, offset in elements, dtype, shape, strides) of each tensor that the launch returns.
    """

    launch: Launch
    arguments: list[tuple]
    blocks: list[int]
    outputs: list[tuple[int, int, torch.dtype, tuple[int, ...], tuple[int, ...]]]


def covers(problem: Problem) -> bool:
    """Whether a launch can be repeated: each call is one launch, whose only tensors are logits and class indices."""
    _, rows, _ = problem.shape
    beside = (
        problem.ensemble_weights,
        problem.device_scalars,
        problem.teacher_logits,
        problem.mixing,
        problem.class_weights,
        problem.num_items,
    )
    return all(tensor is None for tensor in beside) and not problem.probabilities and rows <= MOST_ROWS_COUNTED


def value(problem: Problem) -> Recipe:
    """Prepare ``ensemble_kd_value``. Inputs: the logits and the labels."""
    result, launch = loss_launch(problem)
    return _recipe(launch, _inputs(problem), [result.statistics], result.statistics)


def value_and_grad(problem: Problem) -> Recipe:
    """Prepare ``ensemble_kd_value_and_grad``. Inputs: the logits and the labels."""
    grads = [torch.empty_like(z) for z in problem.logits]
    result, launch = loss_launch(problem, grads)
    blocks = [result.statistics, *_gradient_blocks(grads)]
    return _recipe(launch, _inputs(problem), blocks, [*result.statistics, *grads])


def value_and_rows(problem: Problem) -> Recipe:
    """Prepare ``ensemble_kd_value_and_rows``. Inputs: the logits and the labels."""
    result, launch = loss_launch(problem, keep_rows=True)
    kept = [result.row_statistics, result.counted]
    return _recipe(launch, _inputs(problem), [result.statistics, kept], [*result.statistics, *kept])


def gradients(problem: Problem) -> Recipe:
    """Prepare ``ensemble_kd_grad_out`` with new gradients.

    Inputs: the logits, the labels, the row statistics, the divisors and the upstream gradient, a float32 scalar.
    """
    result, _ = loss_launch(problem, keep_rows=True)
    grads = [torch.empty_like(z) for z in problem.logits]
    upstream = problem.new()
    launch = gradients_launch(problem, grads, upstream, result.row_statistics, result.counted)
    inputs = _inputs(problem)
    first = len(problem.logits) + (problem.labels is not None)
    inputs |= {name: ("input", first + i) for i, name in enumerate(("row_statistics", "counted", "grad_scale"))}
    return _recipe(launch, inputs, _gradient_blocks(grads), grads)


def _gradient_blocks(grads: list[Tensor]) -> list[list[Tensor]]:
    """The gradients that share an allocation."""
    return [grads] if sum(grad.nbytes for grad in grads) <= _SHARED_BYTES else [[grad] for grad in grads]


def _inputs(problem: Problem) -> dict[str, tuple]:
    students = len(problem.logits)
    inputs = {"logits": ("tuple", tuple(("input", j) for j in range(students)))}
    return inputs if problem.labels is None else inputs | {"target": ("input", students)}


def _recipe(
    launch: Launch, inputs: dict[str, tuple], blocks: Sequence[Sequence[Tensor]], outputs: Sequence[Tensor]
) -> Recipe:
    """Describe a launch.

    Args:
        launch: the launch.
        inputs: descriptions of the arguments that are inputs, by name.
        blocks: the buffers of the launch that share an allocation; scratch buffers get one more.
        outputs: the buffers that each call returns.
    """
    kept = {id(tensor) for tensors in blocks for tensor in tensors}
    scratch = [
        buffer
        for name in _SCRATCH
        if name not in inputs and (buffer := launch.arguments.get(name)) is not None and id(buffer) not in kept
    ]
    places, sizes = {}, []
    for tensors in (*blocks, scratch):
        offset = 0
        for tensor in tensors:
            places[id(tensor)] = len(sizes), offset
            offset += -(-tensor.untyped_storage().nbytes() // _ALIGNMENT) * _ALIGNMENT
        if tensors:
            sizes.append(offset)

    def describe(name: str, value: Any) -> tuple:
        if name in inputs:
            return inputs[name]
        if name in NUMBERS:
            return "number", NUMBERS.index(name)
        if isinstance(value, tuple):
            return "tuple", tuple(describe(name, item) for item in value)
        if isinstance(value, Tensor) and name not in _COUNTERS:
            return "block", *places[id(value)]
        return "constant", value

    arguments = [describe(name, launch.arguments[name]) for name in launch.kernel.arg_names]
    returned = []
    for tensor in outputs:
        block, offset = places[id(tensor)]
        returned.append((block, offset // tensor.element_size(), tensor.dtype, tuple(tensor.shape), tensor.stride()))
    return Recipe(launch, arguments, sizes, returned)
