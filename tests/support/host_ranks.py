"""One step of the loops with Accelerate and Fabric on two ranks, beside a step on the whole batch.

Prints the largest difference of the weights for each loop, and the error for adapters that are not used. The ranks are
forked, so that packages are imported once.
"""

import os
import socket

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from .host_examples import distance, family, load, loader, whole_batch_step
from .torchvision_operators import declare_missing_operators


def start(rank: int, port: int) -> None:
    """Set what torchrun sets; the run id tells Lightning that it has started the process."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}


def step(rank: int, name: str, port: int) -> None:
    start(rank, port)
    ensemble = family()
    if name == "accelerate_loop":  # each batch of 8 rows is of one rank; an optimizer step takes two of each
        load(name).train(ensemble, loader(8), micro_batches=2, cpu=True)
    else:
        load(name).train(ensemble, loader(16), parts=4, accelerator="cpu", devices=2, strategy="ddp")
    assert dist.get_world_size() == 2
    if rank == 0:
        print(name, distance(ensemble, whole_batch_step(family())), flush=True)
    dist.destroy_process_group()


def adapters(rank: int, port: int) -> None:
    """Train a family with adapters that have no gradients: the second step fails."""
    start(rank, port)
    load("accelerate_loop").train(family(adapters=True), loader(16), micro_batches=1, cpu=True)  # one step
    try:
        load("accelerate_loop").train(family(adapters=True), loader(8), micro_batches=1, cpu=True)
    except RuntimeError as error:
        if rank == 0:
            print("error", error, flush=True)
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    declare_missing_operators()
    for name in ("accelerate_loop", "fabric_loop"):
        load(name)  # before the fork, once for both ranks
        start_processes(step, (name, free_port()), nprocs=2, start_method="fork")
    start_processes(adapters, (free_port(),), nprocs=2, start_method="fork")
