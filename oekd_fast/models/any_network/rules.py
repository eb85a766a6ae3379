"""What each kind of operation does to channels; `operations` lists the operations of each kind."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from oekd_fast.models.any_network import combine
from oekd_fast.models.any_network.calls import Call, Outcome, Unsupported
from oekd_fast.models.any_network.channel_sets import ChannelSets
from oekd_fast.models.any_network.groups import convolve, divide_channels, fix_beyond
from oekd_fast.models.any_network.layouts import Layout, Operand, dims_of


def same_shape(sets: ChannelSets, call: Call) -> Outcome:
    """Return the layout of the first tensor."""
    return call.everywhere(call.operand(call.args[0]).layout)


def same_memory(sets: ChannelSets, call: Call) -> Outcome:
    """Return the layout of a tensor whose strides change and whose shape does not."""
    operand = call.operand(call.args[0])
    if operand.shape != tuple(call.outputs[0].shape):
        raise Unsupported("it reads memory in another order than the dimensions of the tensor")
    return call.everywhere(operand.layout)


def elementwise(sets: ChannelSets, call: Call) -> Outcome:
    """Join the channels of tensors that are combined element by element."""
    return call.everywhere(combine.broadcast(sets, call.tensors(), call.where))


def move(sets: ChannelSets, call: Call) -> Outcome:
    """Follow the channels of the first tensor; the others are positions and stay."""
    tensor = call.args[0]
    operand = call.operand(tensor)
    for other in call.tensors():
        if other is not operand:
            fix_beyond(sets, other, ())
    return Outcome(combine.move(sets, operand, lambda labels: call.moved(tensor, labels), len(call.outputs)))


def concatenate(sets: ChannelSets, call: Call) -> Outcome:
    """Follow the channels of the tensors of a list that are concatenated or stacked."""
    operands = [call.operand(tensor) for tensor in call.args[0]]
    dim = call.given(1, "dim", 0) % len(call.outputs[0].shape)
    stacked = call.name == "stack"
    if stacked:
        operands = [combine.inserted(operand, dim) for operand in operands]

    def concatenated(labels: list[Tensor]) -> Tensor:
        return call.concatenated([x.squeeze(dim) for x in labels] if stacked else labels)

    return Outcome([combine.concatenate(sets, operands, dim, concatenated, call.where)])


def reduce(sets: ChannelSets, call: Call) -> Outcome:
    """Remove the dimensions of a sum, mean, variance or norm."""
    operand = call.operand(call.args[0])
    position = 2 if "norm" in call.name else 1
    dims = call.given(position, "dim")
    ndim = len(operand.shape)
    if isinstance(dims, int) and not isinstance(dims, bool):  # of some overloads, it is whether to correct a bias
        dims = [dims]
    dims = [d % ndim for d in dims] if isinstance(dims, (list, tuple)) and dims else list(range(ndim))
    keepdim = call.outputs[0].ndim == ndim
    return call.everywhere(combine.reduce(sets, operand.layout, dims, keepdim, call.where))


def over_positions(count: int) -> Callable[[ChannelSets, Call], Outcome]:
    """Return the rule of pooling and resizing over the last `count` dimensions."""

    def rule(sets: ChannelSets, call: Call) -> Outcome:
        operand = call.operand(call.args[0])
        fix_beyond(sets, operand, range(len(operand.shape) - count))
        return call.everywhere(operand.layout)

    return rule


def matrix_product(sets: ChannelSets, call: Call) -> Outcome:
    """Contract the last dimension of the first matrices with the last but one of the second."""
    a, b = call.tensors() if len(call.operands) == 2 else call.tensors() * 2
    return Outcome([combine.contract(sets, a, b, call.where)])


def added_matrix_product(sets: ChannelSets, call: Call) -> Outcome:
    """Add a bias to a matrix product."""
    bias, a, b = (call.operand(argument) for argument in call.args[:3])
    shape = tuple(call.outputs[0].shape)
    product = Operand(combine.contract(sets, a, b, call.where), shape)
    return Outcome([combine.broadcast(sets, [product, bias], call.where)])


def matrix_vector_product(sets: ChannelSets, call: Call) -> Outcome:
    """Contract the last dimension of a matrix with a vector."""
    matrix, vector = (call.operand(argument) for argument in call.args[:2])
    products = combine.broadcast(sets, [matrix, vector], call.where)
    return Outcome([combine.reduce(sets, products, [1], False, call.where)])


def convolution(sets: ChannelSets, call: Call) -> Outcome:
    """Contract the channels of a map with those of a kernel, in groups, and add the bias."""
    x, weight, bias = call.args[:3]
    transposed, groups = call.given(6, "transposed"), call.given(8, "groups")
    layout, fewer = convolve(sets, call.operand(x), call.operand(weight), groups, transposed, call.width, call.where)
    operands = [Operand(layout, tuple(call.outputs[0].shape))]
    if bias is not None:
        operands.append(_along_channels(call.operand(bias), len(operands[0].shape)))
    return Outcome([combine.broadcast(sets, operands, call.where)], groups if groups > 1 else None, fewer)


def batch_norm(sets: ChannelSets, call: Call) -> Outcome:
    """Scale and shift the channels of [B, C, ...]."""
    x, *others = call.tensors()
    operands = [x, *(_along_channels(other, len(x.shape)) for other in others)]
    return _with_statistics(call, combine.broadcast(sets, operands, call.where))


def layer_norm(sets: ChannelSets, call: Call) -> Outcome:
    """Scale and shift the last dimensions, along which the statistics are computed."""
    return _with_statistics(call, combine.broadcast(sets, call.tensors(), call.where))


def group_norm(sets: ChannelSets, call: Call) -> Outcome:
    """Scale and shift the channels of [B, C, ...], with statistics of groups of channels."""
    x, *others = call.tensors()
    groups = call.given(6, "group")
    operands = [x, *(_along_channels(other, len(x.shape)) for other in others)]
    layout = combine.broadcast(sets, operands, call.where)
    fewer = divide_channels(sets, Operand(layout, x.shape), groups, call.width, call.where)
    outcome = _with_statistics(call, layout)
    return Outcome(outcome.layouts, groups, fewer)


def weight_norm(sets: ChannelSets, call: Call) -> Outcome:
    """Scale a weight along one dimension by its norm."""
    return _with_statistics(call, combine.broadcast(sets, call.tensors(), call.where))


def pad(sets: ChannelSets, call: Call) -> Outcome:
    """Return the layout of the map, which is padded along dimensions without channels."""
    operand = call.operand(call.args[0])
    ndim, sizes = len(operand.shape), call.args[1]
    padded = {ndim - 1 - i // 2 for i, size in enumerate(sizes) if size}
    if any(padded & set(dims_of(factor)) for factor in operand.layout.factors):
        raise Unsupported("it pads channels by a constant number, which does not follow the width")
    return call.everywhere(operand.layout)


def embedding(sets: ChannelSets, call: Call) -> Outcome:
    """Look up rows of a table, which all stay; their elements are channels."""
    table = call.operand(call.args[0])
    fix_beyond(sets, table, (1,))
    ndim = len(call.outputs[0].shape)
    factors = tuple(f.reshape([1] * (ndim - 1) + [-1]) for f in table.layout.factors if dims_of(f) == (1,))
    return Outcome([Layout(factors)])


def gated(sets: ChannelSets, call: Call) -> Outcome:
    """Multiply the first half of the channels by the sigmoid of the second."""
    operand = call.operand(call.args[0])
    halves = combine.move(sets, operand, lambda labels: labels.chunk(2, call.given(1, "dim", -1)), 2)
    shape = tuple(call.outputs[0].shape)
    return Outcome([combine.broadcast(sets, [Operand(half, shape) for half in halves], call.where)])


def copied(sets: ChannelSets, call: Call) -> Outcome:
    """Overwrite a tensor that has channels of its own."""
    target, source = (call.operand(argument) for argument in call.args[:2])
    if not target.layout.factors:
        raise Unsupported("it writes channels into a part of a tensor")
    return Outcome([combine.broadcast(sets, [target, source], call.where)])


def _along_channels(operand: Operand, ndim: int) -> Operand:
    """Return a vector [C] as an operand [1, C, 1, ...]."""
    factors = tuple(factor.reshape([1, -1] + [1] * (ndim - 2)) for factor in operand.layout.factors)
    return Operand(Layout(factors), (1, *operand.shape, *[1] * (ndim - 2)))


def _with_statistics(call: Call, layout: Layout) -> Outcome:
    """Return the outcome in which the first output has `layout` and statistics follow."""
    return Outcome([layout, *[None] * (len(call.outputs) - 1)])
