"""Copy batches from host buffers to tensors at fixed addresses on the device."""

from __future__ import annotations

from typing import Protocol

import torch


class Buffers:
    """Memory for one batch: images (uint8 [B, C, H, W]) and labels (int64 [B])."""

    def __init__(
        self, batch_size: int, image_shape: tuple[int, int, int], device: torch.device, pin_memory: bool = False
    ) -> None:
        self.images = torch.empty(batch_size, *image_shape, dtype=torch.uint8, device=device, pin_memory=pin_memory)
        self.labels = torch.empty(batch_size, dtype=torch.int64, device=device, pin_memory=pin_memory)

    def copy_(self, other: Buffers) -> None:
        self.images.copy_(other.images, non_blocking=True)
        self.labels.copy_(other.labels, non_blocking=True)


class Slot(Protocol):
    """Interface of one of the host buffers that are filled ahead of the step."""

    buffers: Buffers

    def wait(self) -> None:
        """Wait until the previous contents have been copied, so that the buffers may be overwritten."""


class Transfer(Protocol):
    """Interface of copies to `target`, the tensors on the device that a step reads."""

    target: Buffers
    slots: list[Slot]

    def send(self, slot: Slot) -> None:
        """Copy a filled slot to `target`, ordered before later work on the current stream."""


def make_transfer(batch_size: int, image_shape: tuple[int, int, int], device: torch.device, num_slots: int) -> Transfer:
    """Return a `StreamTransfer` for a CUDA device and a `PlainTransfer` otherwise."""
    kind = StreamTransfer if device.type == "cuda" else PlainTransfer
    return kind(batch_size, image_shape, device, num_slots)


class PlainSlot:
    """A slot in ordinary host memory."""

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers

    def wait(self) -> None:
        pass


class PlainTransfer:
    """Copies that are complete when `send` returns."""

    def __init__(
        self, batch_size: int, image_shape: tuple[int, int, int], device: torch.device, num_slots: int
    ) -> None:
        host = torch.device("cpu")
        self.target = Buffers(batch_size, image_shape, device)
        self.slots = [PlainSlot(Buffers(batch_size, image_shape, host)) for _ in range(num_slots)]

    def send(self, slot: PlainSlot) -> None:
        self.target.copy_(slot.buffers)


class PinnedSlot:
    """A slot in pinned host memory, with the event of its last copy."""

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self.copied = torch.cuda.Event(blocking=True)

    def wait(self) -> None:
        self.copied.synchronize()


class Stage:
    """A device buffer between a pinned slot and the target, with the event of its last read."""

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self.read = torch.cuda.Event()


class StreamTransfer:
    """Copies from pinned memory on a separate stream, through one of two stages on the device.

    The copy to a stage overlaps with the previous step. Only the short copy from the stage to the target waits for
    that step, which may still read the target.
    """

    def __init__(
        self, batch_size: int, image_shape: tuple[int, int, int], device: torch.device, num_slots: int
    ) -> None:
        host = torch.device("cpu")
        self.target = Buffers(batch_size, image_shape, device)
        self.slots = [PinnedSlot(Buffers(batch_size, image_shape, host, pin_memory=True)) for _ in range(num_slots)]
        self._stages = [Stage(Buffers(batch_size, image_shape, device)) for _ in range(2)]
        self._stream = torch.cuda.Stream(device)
        # The memory of the stages may still be in use by earlier work on the stream that allocated it, and the
        # allocator must not reuse it before the copies into it are done.
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
