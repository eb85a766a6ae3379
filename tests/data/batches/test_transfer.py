"""Copies on a separate stream: the order of the work, simulated for every order that the events allow.

The simulation replaces `torch.cuda` by `SimulatedCuda` and needs no GPU. Tests on a GPU are at the end.
"""

import random
from collections import deque
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from oekd_fast.data import DeviceBatches, HostBatches, Split
from oekd_fast.data.batches import transfer as module
from oekd_fast.data.batches.transfer import StreamTransfer


class SimulatedCuda:
    """Streams whose work runs in a random order among those that the events allow."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.streams = []
        self.current = self.new_stream()
        self.cuda = SimpleNamespace(
            Stream=lambda device: self.new_stream(),
            Event=lambda blocking=False: Event(self),
            current_stream=lambda device: self.current,
            stream=self.use,
        )

    def new_stream(self):
        self.streams.append(Stream())
        return self.streams[-1]

    @contextmanager
    def use(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def advance(self) -> bool:
        """Do one piece of work that is not blocked, chosen at random; return False if there is none."""
        unblocked = [stream for stream in self.streams if stream.work and stream.work[0][0]()]
        if unblocked:
            self.random.choice(unblocked).work.popleft()[1]()
        return bool(unblocked)


class Stream:
    def __init__(self) -> None:
        self.work = deque()  # (function that tells whether the action may run, action)

    def do(self, action, may_run=lambda: True) -> None:
        self.work.append((may_run, action))

    def wait_event(self, event) -> None:
        recorded = event.recorded
        self.do(lambda: None, lambda: event.reached >= recorded)

    def wait_stream(self, other) -> None:
        pass


class Event:
    def __init__(self, streams: SimulatedCuda) -> None:
        self.streams, self.recorded, self.reached = streams, 0, 0

    def record(self, stream) -> None:
        self.recorded += 1
        stream.do(lambda number=self.recorded: setattr(self, "reached", number))

    def synchronize(self) -> None:
        while self.reached < self.recorded:
            assert self.streams.advance(), "deadlock: no work is left that would reach the event"


@pytest.mark.parametrize("seed", range(20))
def test_every_step_reads_its_own_batch(monkeypatch, seed):
    streams = SimulatedCuda(seed)

    class Buffers:
        """One value in place of the images and labels of a batch."""

        def __init__(self, batch_size, image_shape, device, pin_memory=False):
            self.value = None
            self.images = self.labels = SimpleNamespace(device=device, record_stream=lambda stream: None)

        def copy_(self, other):
            streams.current.do(lambda: setattr(self, "value", other.value))

    monkeypatch.setattr(module, "torch", SimpleNamespace(cuda=streams.cuda, device=torch.device))
    monkeypatch.setattr(module, "Buffers", Buffers)
    transfer = StreamTransfer(1, (1, 1, 1), torch.device("cuda"), 3)
    compute, read = streams.current, []
    for step in range(30):
        slot = transfer.slots[step % 3]
        slot.wait()
        slot.buffers.value = step
        transfer.send(slot)
        for _ in range(2):  # a step reads its batch at its beginning and at its end
            compute.do(lambda: read.append(transfer.target.value))
        for _ in range(streams.random.randrange(12)):
            streams.advance()
    while streams.advance():
        pass
    assert read == [step for step in range(30) for _ in range(2)]


ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def split() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4096, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(4096))


class TestOnAGpu:
    pytestmark = ON_GPU

    @pytest.mark.parametrize("work", [0, 8])
    def test_prefetched_batches_equal_device_batches(self, split, work):
        order = torch.randperm(4096, generator=torch.Generator().manual_seed(1))
        device, host = DeviceBatches(split, "cuda"), HostBatches(split, "cuda")
        matrix = torch.randn(2048, 2048, device="cuda")
        kept = []
        for _ in range(2):
            for batches in (device, host):
                batches.begin(order, 128, first=5)
            for _ in range(4096 // 128 - 5):
                device.ready(), host.ready()
                for _ in range(work):  # so that copies run far ahead of the step
                    matrix = matrix @ matrix * 1e-3
                kept.append([tensor.clone() for batches in (device, host) for tensor in batches.take()])
        for expected_images, expected_labels, images, labels in kept:
            assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)

    @pytest.mark.parametrize("kind", [DeviceBatches, HostBatches])
    def test_a_captured_take_can_be_replayed_in_later_epochs(self, split, kind):
        batches, graph = kind(split, "cuda"), torch.cuda.CUDAGraph()
        images, labels = torch.empty(256, 3, 32, 32, dtype=torch.uint8, device="cuda"), torch.empty(256, device="cuda")
        order = batches.order(torch.Generator().manual_seed(0))
        batches.begin(order, 256)
        batches.ready()
        with torch.cuda.graph(graph):  # also checks that the prefetch thread makes no illegal call during capture
            taken = batches.take()
            images.copy_(taken[0]), labels.copy_(taken[1])
        signature = batches.signature
        for epoch_order in (order, order.flip(0)):
            batches.begin(epoch_order, 256)
            assert batches.signature == signature
            for rows in epoch_order.split(256):
                batches.ready()
                graph.replay()
                assert torch.equal(labels.cpu().long(), rows)
                assert torch.equal(images.cpu(), split.images[rows])

    def test_host_buffers_are_pinned(self, split):
        batches = HostBatches(split, "cuda")
        batches.begin(torch.arange(256), 128)
        assert all(slot.buffers.images.is_pinned() for slot in batches._transfer.slots)
