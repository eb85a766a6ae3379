"""Which channels have to be kept or removed together: a disjoint-set forest of channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# The label of elements that belong to no channel, such as padding. It is never removed.
FIXED = 0


@dataclass(frozen=True)
class Division:
    """Channels that are divided into rows, each of which has to keep the same number of channels.

    Args:
        rows: labels [rows, channels of a row].
        where: the operation that divides them.
        heads: whether the rows are attention heads.
    """

    rows: np.ndarray
    where: str
    heads: bool


class ChannelSets:
    """Labels of channels, and which of them belong together.

    Every position of every dimension of a parameter receives a label. Operations join labels: those of two summands of
    an addition, or the output channels of a convolution and the scales of the normalisation that follows. In the end,
    each set of joined labels is one channel of the network, which is removed from all tensors or from none.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1, dtype=np.int64)
        self._used = 1
        self._blocks: list[tuple[np.ndarray, int]] = []
        self.divisions: list[Division] = []
        # Operations that combine channels with numbers that belong to none, and how many channels they fix.
        self.constants: list[tuple[int, str]] = []

    def new(self, count: int) -> Tensor:
        """Return `count` new labels, int64 [count]."""
        first, self._used = self._used, self._used + count
        if self._used > len(self._parent):
            grown = np.arange(2 * self._used, dtype=np.int64)
            grown[: len(self._parent)] = self._parent
            self._parent = grown
        return torch.arange(first, self._used)

    def find(self, labels: Tensor) -> Tensor:
        """Return the labels that represent the sets of `labels`; same shape."""
        return torch.from_numpy(self.roots(labels.numpy()))

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """Return the labels that represent the sets of `labels`; same shape."""
        roots = np.asarray(self._parent[labels])
        while not np.array_equal(above := self._parent[roots], roots):
            roots = above
        self._parent[labels] = roots
        return roots

    def members(self, labels: Sequence[Tensor]) -> np.ndarray:
        """Return all labels of the sets of `labels`, which so far belong together, without `FIXED`; int64 [members]."""
        roots = self.roots(np.concatenate([np.empty(0, np.int64), *(each.reshape(-1).numpy() for each in labels)]))
        everything = np.arange(self._used)
        return everything[np.isin(self.roots(everything), np.setdiff1d(roots, [FIXED]))]

    def join(self, a: Tensor, b: Tensor) -> None:
        """Join the sets of the labels at the same positions of `a` and `b`, which are broadcast together."""
        first, second = np.broadcast_arrays(a.numpy(), b.numpy())
        while True:
            x, y = self.roots(first), self.roots(second)
            differ = x != y
            if not differ.any():
                return
            x, y = x[differ], y[differ]
            # A set may meet several others, of which one is joined in each round.
            np.minimum.at(self._parent, np.maximum(x, y), np.minimum(x, y))

    def join_rows(self, rows: Tensor) -> None:
        """Join all labels of a row; the channels of each of `rows` [rows, channels] are removed together."""
        self.join(rows, rows[:, :1])
        self._blocks.append((rows[:, 0].numpy().copy(), rows.shape[1]))

    def fix(self, labels: Tensor) -> None:
        """Keep `labels`, whatever the width."""
        self.join(labels, torch.tensor(FIXED))

    def divide(self, rows: Tensor, where: str, heads: bool = False) -> None:
        """Require that all `rows` [rows, channels] keep the same number of channels."""
        self.divisions.append(Division(rows.numpy(), where, heads))

    def block_sizes(self) -> dict[int, int]:
        """Return how many channels of one layer the sets hold that `join_rows` has made, by representative."""
        sizes: dict[int, int] = {}
        for labels, size in self._blocks:
            for root in self.roots(labels).tolist():
                sizes[root] = max(size, sizes.get(root, 1))
        return sizes

    def __len__(self) -> int:
        return self._used
