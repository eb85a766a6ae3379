"""Checks that all ranks do the same, and errors that all ranks learn of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from oekd_fast.distributed.world import LostRankError, World


class OtherRankError(RuntimeError):
    """Another rank failed and tells why; this rank ends with it.

    Attributes:
        rank: the rank that failed.
    """

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(f"rank {rank}: {message}")
        self.rank = rank


@contextmanager
def failing_together(world: World) -> Iterator[None]:
    """Have all ranks fail if the block raises on one of them. Collective, so that every rank enters and leaves it.

    Raises:
        The exception of the block, on the lowest rank where it failed.
        OtherRankError: on all other ranks.
    """
    if world.size == 1:
        yield
        return
    own: Exception | None = None
    try:
        yield
    except LostRankError:
        raise
    except Exception as error:
        own = error
    texts = world.gather_bytes(b"" if own is None else (str(own) or type(own).__name__).encode())
    failed = next((rank for rank, text in enumerate(texts) if text), None)
    if failed is None:
        return
    if failed == world.rank:
        raise own
    raise OtherRankError(failed, texts[failed].decode(errors="replace")) from own


def check_same_on_all(world: World, facts: Mapping[str, object]) -> None:
    """Check that `facts`, values that JSON can hold, are the same as on rank 0. Collective.

    Raises:
        ValueError: on the lowest rank that differs; the message names each difference.
        OtherRankError: on all other ranks.
    """
    if world.size == 1:
        return
    expected = json.loads(world.from_main(json.dumps(facts).encode() if world.is_main else None))
    with failing_together(world):
        own = json.loads(json.dumps(facts))
        differences = [
            f"{name}: expected {expected.get(name)!r} as on rank 0, got {own.get(name)!r}"
            for name in {**expected, **own}
            if expected.get(name) != own.get(name)
        ]
        if differences:
            raise ValueError("; ".join(differences))
