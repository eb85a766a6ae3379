"""The channels that remain, with the interface of `ChannelSets`, for operations of a narrower copy."""

from __future__ import annotations

from torch import Tensor

from oekd_fast.models.any_network.calls import Unsupported


class KeptChannels:
    """Labels of the channels that remain, of which no more are joined: labels that meet have to be the same."""

    def find(self, labels: Tensor) -> Tensor:
        """Return `labels`, which are the representatives of their sets."""
        return labels

    def join(self, a: Tensor, b: Tensor) -> None:
        """Compare labels that meet.

        Raises:
            Unsupported: they differ.
        """
        try:
            same = bool((a == b).all())
        except RuntimeError:  # they cannot be broadcast together
            same = False
        if not same:
            raise Unsupported("it combines other channels in a narrower copy than in the module")

    def fix(self, labels: Tensor) -> None:
        """Accept `labels`."""

    def divide(self, rows: Tensor, where: str, heads: bool = False) -> None:
        """Accept `rows`."""
