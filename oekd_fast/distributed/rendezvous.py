"""How the processes of a run find each other: through the environment that torchrun or another launcher has set."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from oekd_fast.distributed.world import LostRankError, World

POLL = 0.02  # seconds


@dataclass(frozen=True)
class Launch:
    """What a launcher has told this process.

    world: its place among the processes.
    host, port: address of the store of the launcher, or of rank 0.
    agent_store: whether the store belongs to torchrun, which keeps it over restarts.
    """

    world: World
    host: str
    port: int
    agent_store: bool

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Launch | None:
        """Read the variables of the ``env://`` method of ``torch.distributed``; return None for a single process.

        Raises:
            ValueError: a variable is missing or out of range, or SLURM starts several processes without them.
        """
        size = _number(environment, "WORLD_SIZE", at_least=1, default=1)
        if size == 1:
            tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1"
            if "WORLD_SIZE" not in environment and "SLURM_PROCID" in environment and tasks != "1":
                raise ValueError(
                    f"WORLD_SIZE: expected the number of processes, got none, although SLURM starts {tasks} tasks; "
                    "start one task a node that runs torchrun"
                )
            return None
        rank = _number(environment, "RANK", at_least=0, below=size)
        local_size = _number(environment, "LOCAL_WORLD_SIZE", at_least=1, default=1)
        local_rank = _number(environment, "LOCAL_RANK", at_least=0, below=local_size, default=0)
        restarts = _number(environment, "TORCHELASTIC_RESTART_COUNT", at_least=0, default=0)
        if not environment.get("MASTER_ADDR"):
            raise ValueError("MASTER_ADDR: expected the host of rank 0, got none")
        return cls(
            World(rank, size, local_rank, local_size, restarts),
            environment["MASTER_ADDR"],
            _number(environment, "MASTER_PORT", at_least=1, below=1 << 16),
            environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )


def rank_prefix(environment: Mapping[str, str] | None = None) -> str:
    """Return "rank 1: " for messages of one of several processes, and "" for a single process."""
    environment = os.environ if environment is None else environment
    several = environment.get("WORLD_SIZE", "1") != "1" and "RANK" in environment
    return f"rank {environment['RANK']}: " if several else ""


def is_quiet_rank(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether this process is one of several and not the first, whose output stands for all."""
    return rank_prefix(environment) not in ("", "rank 0: ")


@contextmanager
def joined(device_type: str, timeout: float, join_timeout: float) -> Iterator[World]:
    """Join the other processes of the run, if the environment names any, and leave them at the end.

    If the default process group of ``torch.distributed`` exists, it is used and stays.

    Args:
        device_type: "cpu" or "cuda", the device of the gradients.
        timeout: seconds to wait for other ranks in each exchange.
        join_timeout: seconds in which the ranks must find each other.

    Raises:
        ValueError: the environment is incomplete, or NCCL is missing.
        LostRankError: another rank did not join, or rank 0 cannot be reached.
    """
    if dist.is_available() and dist.is_initialized():
        launch = Launch.from_environment(os.environ)
        own = World() if launch is None else launch.world
        yield World(dist.get_rank(), dist.get_world_size(), own.local_rank, own.local_size, own.restarts)
        return
    launch = Launch.from_environment(os.environ)
    if launch is None:
        yield World()
        return
    _start(launch, device_type, timeout, join_timeout)
    try:
        yield launch.world
    finally:
        dist.destroy_process_group()


def _start(launch: Launch, device_type: str, timeout: float, join_timeout: float) -> None:
    if not (dist.is_available() and dist.is_gloo_available()):
        raise ValueError("WORLD_SIZE: expected 1, because this PyTorch was built without gloo")
    if device_type == "cuda" and not dist.is_nccl_available():
        raise ValueError("WORLD_SIZE: expected 1 on CUDA devices, because this PyTorch was built without NCCL")
    world = launch.world
    try:
        store = _fresh_store(launch, join_timeout) if launch.agent_store else _own_store(launch, join_timeout)
        store.set_timeout(timedelta(seconds=timeout))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=timeout),
            device_id=torch.device("cuda", world.local_rank) if device_type == "cuda" else None,
        )
    except (RuntimeError, TimeoutError) as error:
        if dist.is_initialized():
            dist.destroy_process_group()
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LostRankError(
            f"the ranks did not find each other within {join_timeout:g} s at {launch.host}:{launch.port} ({reason})"
        ) from error


def _own_store(launch: Launch, timeout: float) -> dist.Store:
    """Return the store at the address of the launch, which rank 0 serves, once all ranks have reached it."""
    world, deadline = launch.world, time.monotonic() + timeout
    store = dist.TCPStore(
        launch.host, launch.port, world.size, world.is_main, timedelta(seconds=timeout), wait_for_workers=False
    )
    store.set(f"joined/{world.rank}", "yes")
    for rank in range(world.size):
        while not store.check([f"joined/{rank}"]):
            _pause(deadline, f"rank {rank} did not join")
    return store


def _fresh_store(launch: Launch, timeout: float) -> dist.Store:
    """Return a new store of rank 0, whose address travels through the store of torchrun.

    Torchrun's own store keeps the keys of processes that were restarted, which confuses the new ones
    (pytorch/pytorch#135712). A rank therefore shows a random token, and takes an address only with that token.
    """
    world, limit = launch.world, timedelta(seconds=timeout)
    agent = dist.PrefixStore("oekd_fast", dist.TCPStore(launch.host, launch.port, is_master=False, timeout=limit))
    deadline = time.monotonic() + timeout
    if not world.is_main:
        token = secrets.token_hex(16)
        agent.set(f"token/{world.rank}", token)
        port = _wait_for_port(agent, f"port/{world.rank}", token, deadline)
        store = dist.TCPStore(launch.host, port, world.size, False, limit, wait_for_workers=False)
        store.set(f"joined/{world.rank}", "yes")
        return store
    store = dist.TCPStore(launch.host, 0, world.size, True, limit, wait_for_workers=False)
    waiting, answered = set(range(1, world.size)), {}
    while waiting:
        for rank in sorted(waiting):
            if store.check([f"joined/{rank}"]):
                waiting.discard(rank)
            elif agent.check([f"token/{rank}"]):
                token = agent.get(f"token/{rank}").decode()
                if answered.get(rank) != token:
                    agent.set(f"port/{rank}", f"{token} {store.port}")
                    answered[rank] = token
        _pause(deadline, f"rank {min(waiting, default=0)} did not join")
    return store


def _wait_for_port(agent: dist.Store, key: str, token: str, deadline: float) -> int:
    while True:
        if agent.check([key]):
            shown, port = agent.get(key).decode().split()
            if shown == token:
                return int(port)
        _pause(deadline, "rank 0 did not answer")


def _pause(deadline: float, missing: str) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError(missing)
    time.sleep(POLL)


def _number(
    environment: Mapping[str, str], name: str, *, at_least: int, below: int | None = None, default: int | None = None
) -> int:
    text = environment.get(name)
    if text is None:
        if default is None:
            raise ValueError(f"{name}: expected an integer, got none, although WORLD_SIZE is set")
        return default
    expected = f"an integer >= {at_least}" + ("" if below is None else f" and < {below}")
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"{name}: expected {expected}, got {text!r}") from None
    if value < at_least or (below is not None and value >= below):
        raise ValueError(f"{name}: expected {expected}, got {value}")
    return value
