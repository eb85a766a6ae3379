"""Checkpoints of a run on several ranks: rank 0 writes and reads them, and every rank has its random numbers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from oekd_fast.distributed.agreement import failing_together
from oekd_fast.distributed.world import World
from oekd_fast.runs.checkpoint import (
    LoadedCheckpoint,
    checkpoint_bytes,
    load_latest_checkpoint,
    state_of_bytes,
)

_ODD = 0x9E3779B97F4A7C15  # makes seeds of neighbouring ranks and steps very different


def load_latest_on_all(folder: Path, device: torch.device, world: World) -> LoadedCheckpoint | None:
    """Return the newest intact checkpoint on every rank. Collective; rank 0 alone reads `folder`.

    Raises:
        CheckpointError, OtherRankError: all checkpoints are damaged.
    """
    loaded, data = None, b""
    with failing_together(world):
        if world.is_main:
            loaded = load_latest_checkpoint(folder, device)
            if loaded is not None and world.size > 1:
                data = checkpoint_bytes(loaded.path)
    if world.size == 1:
        return loaded
    about = None if loaded is None else {"path": str(loaded.path), "step": loaded.step}
    about = json.loads(world.from_main(json.dumps(about).encode() if world.is_main else None))
    if about is None:
        return None
    data = world.from_main(data if world.is_main else None)
    return loaded or LoadedCheckpoint(state_of_bytes(data, device), Path(about["path"]), about["step"])


def seed_rank(seed: int, world: World, step: int = 0) -> None:
    """Seed the generators that networks draw from, which is a different stream on each rank; rank 0 keeps its own."""
    if not world.is_main:
        torch.manual_seed((seed + _ODD * (world.rank + world.size * step)) % (1 << 63))


def rank_generators(generator: torch.Generator, world: World) -> list[Tensor]:
    """Return the states of `generator` on the ranks 1, 2, ..., for a checkpoint. Collective."""
    return world.gather(generator.get_state())[1:]


def restore_rank_generator(
    generator: torch.Generator, states: list[Tensor], world: World, seed: int, step: int
) -> None:
    """Continue the random numbers of this rank from the `states` of a checkpoint.

    If the checkpoint is of another number of ranks, the ranks from 1 on begin new streams.
    """
    if world.is_main:
        return
    if len(states) == world.size - 1:
        generator.set_state(states[world.rank - 1].cpu())
    else:
        seed_rank(seed, world, step)
