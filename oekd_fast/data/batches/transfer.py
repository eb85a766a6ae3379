"""Batches from host buffers to tensors that stay in one place on the device."""

from __future__ import annotations

from typing import Protocol

import torch


class Buffers:
    """Room for one batch: images (uint8 [B, C, H, W]) and labels (int64 [B])."""

    def __init__(
        self, batch_size: int, image_shape: tuple[int, int, int], device: torch.device, pin_memory: bool = False
    ) -> None:
        self.images = torch.empty(batch_size, *image_shape, dtype=torch.uint8, device=device, pin_memory=pin_memory)
        self.labels = torch.empty(batch_size, dtype=torch.int64, device=device, pin_memory=pin_memory)

    def copy_(self, other: Buffers) -> None:
        self.images.copy_(other.images, non_blocking=True)
        self.labels.copy_(other.labels, non_blocking=True)


class Slot(Protocol):
    """One of the host buffers that are filled ahead of the step."""

    buffers: Buffers

    def wait(self) -> None:
        """Until the buffers may be written to: what they held has been copied."""


class Transfer(Protocol):
    """The way of a batch to `target`, the tensors on the device that a step reads."""

    target: Buffers
    slots: list[Slot]

    def send(self, slot: Slot) -> None:
        """Copy a filled slot to `target`, before whatever the current stream does next."""


def make_transfer(batch_size: int, image_shape: tuple[int, int, int], device: torch.device, num_slots: int) -> Transfer:
    """Through pinned memory and a stream of its own where the device is CUDA, otherwise by plain copies."""
    kind = StreamTransfer if device.type == "cuda" else PlainTransfer
    return kind(batch_size, image_shape, device, num_slots)


class PlainSlot:
    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers

    def wait(self) -> None:
        pass


class PlainTransfer:
    """Copies that are done when `send` returns."""

    def __init__(
        self, batch_size: int, image_shape: tuple[int, int, int], device: torch.device, num_slots: int
    ) -> None:
        host = torch.device("cpu")
        self.target = Buffers(batch_size, image_shape, device)
        self.slots = [PlainSlot(Buffers(batch_size, image_shape, host)) for _ in range(num_slots)]

    def send(self, slot: PlainSlot) -> None:
        self.target.copy_(slot.buffers)


class PinnedSlot:
    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self.copied = torch.cuda.Event(blocking=True)

    def wait(self) -> None:
        self.copied.synchronize()


class Stage:
    """A device buffer between a pinned slot and the target."""

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self.read = torch.cuda.Event()


class StreamTransfer:
    """Copies on a stream of their own into one of two stages, so that a batch travels while the step before computes.

    Only the short copy from the stage to the target waits for the step that still reads the target.
    """

    def __init__(
        self, batch_size: int, image_shape: tuple[int, int, int], device: torch.device, num_slots: int
    ) -> None:
        host = torch.device("cpu")
        self.target = Buffers(batch_size, image_shape, device)
        self.slots = [PinnedSlot(Buffers(batch_size, image_shape, host, pin_memory=True)) for _ in range(num_slots)]
        self._stages = [Stage(Buffers(batch_size, image_shape, device)) for _ in range(2)]
        self._stream = torch.cuda.Stream(device)
        # The stages' memory may still be in use by earlier work of the stream that it was allocated on, and must not
        # be given to others before the copies into it are done.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        for stage in self._stages:
            stage.buffers.images.record_stream(self._stream)
            stage.buffers.labels.record_stream(self._stream)

    def send(self, slot: PinnedSlot) -> None:
        current = torch.cuda.current_stream(self.target.images.device)
        stage = self._stages[0]
        self._stages.reverse()
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(stage.read)
            stage.buffers.copy_(slot.buffers)
            slot.copied.record(self._stream)
        current.wait_event(slot.copied)
        self.target.copy_(stage.buffers)
        stage.read.record(current)
