"""How operations combine the channels of their operands: broadcasting, sums over dimensions, and movement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from oekd_fast.models.any_network.channel_sets import ChannelSets
from oekd_fast.models.any_network.layouts import Layout, Operand, collapsed, dims_of, rows_of


def broadcast(sets: ChannelSets, operands: Sequence[Operand], where: str) -> Layout:
    """Join the channels of operands that are combined element by element, and return the layout of the result."""
    ndim = max((len(operand.shape) for operand in operands), default=0)
    aligned = [operand.aligned(ndim) for operand in operands if not operand.layout.filled]
    if operands and not aligned:
        return Layout(filled=True)
    _join_operands(sets, aligned, where)
    return Layout(_distinct(sets, [factor for operand in aligned for factor in operand.layout.factors]))


def reduce(sets: ChannelSets, layout: Layout, dims: Sequence[int], keepdim: bool, where: str) -> Layout:
    """Return the layout after a sum, mean or maximum over `dims`, which are not negative."""
    factors = []
    for factor in layout.factors:
        varying = dims_of(factor)
        summed = [d for d in varying if d in dims]
        if varying and max(varying) in summed:
            if len(varying) > len(summed):
                sets.divide(rows_of(factor), where, heads=True)
            continue
        for d in summed:
            first = factor.narrow(d, 0, 1)
            sets.join(factor, first)
            factor = first
        factors.append(factor if keepdim else _without(factor, dims))
    return Layout(tuple(factors), layout.filled)


def contract(sets: ChannelSets, a: Operand, b: Operand, where: str) -> Layout:
    """Return the layout of the matrix product of `a` [..., n, k] and `b` [..., k, m]."""
    ndim = len(a.shape)
    operands = [inserted(a, ndim), inserted(b, len(b.shape) - 2)]
    return reduce(sets, broadcast(sets, operands, where), [ndim - 1], False, where)


def concatenate(sets: ChannelSets, operands: Sequence[Operand], dim: int, call: Callable, where: str) -> Layout:
    """Return the layout of `call(tensors)`, which concatenates along `dim`; operands of shape [0] are dropped by it."""
    operands = [operand for operand in operands if operand.shape != (0,)]
    if all(operand.layout.filled for operand in operands):
        return Layout(filled=True)
    _join_operands(sets, [operand for operand in operands if not operand.layout.filled], where, but=dim)
    count = max(len(operand.layout.factors) for operand in operands)
    factors = []
    for index in range(count):
        known = [operand.layout.factors[index] for operand in operands if index < len(operand.layout.factors)]
        across = all(dim not in dims_of(factor) for factor in known)
        tensors = []
        for operand in operands:
            if operand.layout.filled and across:
                operand = Operand(Layout((known[0],) * (index + 1)), operand.shape)
            tensors.append(expanded(sets, operand, index))
        factors.append(call(tensors))
    return Layout(_distinct(sets, factors))


def move(sets: ChannelSets, operand: Operand, call: Callable[[Tensor], Iterable[Tensor]], outputs: int) -> list[Layout]:
    """Return the layouts of the `outputs` of `call(operand)`, which moves elements without computing."""
    if operand.layout.filled:
        return [operand.layout] * outputs
    found: list[list[Tensor]] = [[] for _ in range(outputs)]
    for index in range(len(operand.layout.factors)):
        for factors, labels in zip(found, call(expanded(sets, operand, index)), strict=True):
            if labels.numel() == 1 or (dims_of(operand.layout.factors[index]) and collapsed(labels).numel() == 1):
                sets.fix(collapsed(labels))  # one channel alone is selected, by its position
            factors.append(labels)
    return [Layout(_distinct(sets, factors)) for factors in found]


def expanded(sets: ChannelSets, operand: Operand, index: int) -> Tensor:
    """Return the labels of factor `index` for each element; `FIXED` if there is no such factor."""
    factors = operand.layout.factors
    if index >= len(factors):
        return torch.zeros(operand.shape, dtype=torch.int64)
    return sets.find(factors[index]).expand(operand.shape).contiguous()


def inserted(operand: Operand, dim: int) -> Operand:
    """Return the operand with a new dimension of size 1 before `dim`."""
    factors = tuple(factor.unsqueeze(dim) for factor in operand.layout.factors)
    return Operand(Layout(factors, operand.layout.filled), (*operand.shape[:dim], 1, *operand.shape[dim:]))


def _distinct(sets: ChannelSets, factors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the factors with labels that differ, each once."""
    result: list[Tensor] = []
    for factor in factors:
        factor = collapsed(sets.find(factor))
        if factor.numel() > 1 and not any(torch.equal(factor, known) for known in result):
            result.append(factor)
    return tuple(result)


def _join_operands(sets: ChannelSets, operands: Sequence[Operand], where: str, but: int | None = None) -> None:
    for operand in operands:
        for factor in operand.layout.factors:
            for other in operands:
                if other is not operand and but not in dims_of(factor):
                    _match(sets, factor, other, where)


def _match(sets: ChannelSets, factor: Tensor, other: Operand, where: str) -> None:
    """Join `factor` with the labels of `other` along the dimensions along which both vary."""
    shared = {d for d in dims_of(factor) if other.shape[d] > 1}
    if not shared:
        return
    last = max(dims_of(factor))
    partners = [g for g in other.layout.factors if shared & set(dims_of(g))]
    rows_differ = shared - {last}
    for partner in partners:
        if max(dims_of(partner)) == last:
            sets.join(factor, partner)
            rows_differ -= set(dims_of(partner))
        elif last not in dims_of(partner):  # it scales whole rows, such as attention heads, which all stay
            sets.fix(partner)
    if last in shared and not any(last in dims_of(partner) for partner in partners):
        sets.fix(factor)
        sets.constants.append((factor.numel(), where))
    if rows_differ:
        sets.divide(rows_of(factor), where, heads=True)


def _without(factor: Tensor, dims: Sequence[int]) -> Tensor:
    return factor.reshape([size for d, size in enumerate(factor.shape) if d not in dims])
