"""Calls of networks in PyTorch as it is, on the CPU or another device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from oekd_fast.latency.networks import Network


class Eager:
    """PyTorch on one device.

    Args:
        networks: networks on the CPU.
        device: where they are called.
    """

    name = "eager"

    def __init__(self, networks: Sequence[Network], device: torch.device) -> None:
        self._networks, self._device = networks, device
        self.device = device.type

    @contextmanager
    def calls(self, threads: int | None, images: Tensor) -> Iterator[list[Callable[[], float]]]:
        """See `Runtime`. Afterwards the networks are on the CPU, and torch has the number of threads of before."""
        before = torch.get_num_threads()
        timed = {"cpu": _timed_on_cpu, "cuda": _timed_on_cuda}.get(self.device, _timed_on_accelerator)
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            for network in self._networks:
                network.module.to(self._device)
            images = images.to(self._device)
            yield [partial(timed, network.module, images) for network in self._networks]
        finally:
            torch.set_num_threads(before)
            for network in self._networks:
                network.module.to("cpu")


@torch.inference_mode()
def _timed_on_cpu(module: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    module(images)
    return time.perf_counter() - start


@torch.inference_mode()
def _timed_on_cuda(module: nn.Module, images: Tensor) -> float:
    """Measure by events, from the launch of the first kernel on an idle device to the end of the last one."""
    with torch.cuda.device(images.device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        module(images)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000


@torch.inference_mode()
def _timed_on_accelerator(module: nn.Module, images: Tensor) -> float:
    torch.accelerator.synchronize(images.device)
    start = time.perf_counter()
    module(images)
    torch.accelerator.synchronize(images.device)
    return time.perf_counter() - start
