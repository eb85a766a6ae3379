"""The batch of the next step, prepared on a stream of its own while a step runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class NextBatch:
    """Prepares the batches of an epoch one step ahead, at fixed addresses, so that a captured step can do so.

        ahead.prepare_first()  # before the first step of an epoch
        ahead.keep_random_states()  # before each step; the step itself is:
        batch = ahead.take()
        with ahead.prepared_beside():
            ...  # train on `batch`

    The random numbers of each batch are those that it would draw in its own step. A checkpoint after a step holds the
    states before the draws for the next batch, which `generators` return.

    Args:
        prepare: returns the pixels and the target of the next batch by device work alone, drawing from `drawn_from`.
        drawn_from: random generators on `device`, by name.
        device: device of the batches; only CUDA has a second stream, other devices prepare the batch before the step.

    Attributes:
        generators: `drawn_from` as steps have left them, without the draws for a batch that is prepared ahead.
    """

    def __init__(
        self,
        prepare: Callable[[], tuple[Tensor, Tensor]],
        drawn_from: Mapping[str, torch.Generator],
        device: torch.device,
    ) -> None:
        self._prepare, self._drawn_from = prepare, drawn_from
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: tuple[Tensor, ...] = ()
        self._kept: dict[str, Tensor] = {}
        self.generators = {name: GeneratorOfSteps(self, name) for name in drawn_from}

    @property
    def prepared(self) -> bool:
        """Whether a batch is prepared for the next step."""
        return bool(self._kept)

    @property
    def signature(self) -> Hashable:
        """Key of what a captured step depends on; see `Batches.signature`."""
        return tuple((tensor.data_ptr(), *tensor.shape) for tensor in self._next)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a step changes, by name."""
        return dict(zip(("pixels", "target"), self._next, strict=False))

    def prepare_first(self) -> None:
        """Prepare the first batch of an epoch, on the current stream."""
        self.keep_random_states()
        prepared = self._prepare()
        layouts = [(t.shape, t.stride(), t.dtype) for t in prepared]
        if layouts != [(t.shape, t.stride(), t.dtype) for t in self._next]:
            self._next = tuple(torch.empty_like(tensor) for tensor in prepared)
        self._store(prepared)

    def keep_random_states(self) -> None:
        """Take the generators as they are for those that the last step has left, without waiting for the device."""
        self._kept = {name: generator.get_state() for name, generator in self._drawn_from.items()}

    def take(self) -> tuple[Tensor, Tensor]:
        """Return copies of the pixels and the target of the prepared batch."""
        pixels, target = self._next
        return pixels.clone(), target.clone()

    @contextmanager
    def prepared_beside(self) -> Iterator[None]:
        """Prepare the next batch on a side stream, from the start of the context to its end."""
        if self._stream is None:
            self._store(self._prepare())
            yield
            return
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._store(self._prepare())
        try:
            yield
        finally:  # a capture that fails must have no open branch
            current.wait_stream(self._stream)

    def discard(self) -> None:
        """Forget the prepared batch, and set the generators to the states before its draws."""
        for name, state in self._kept.items():
            self._drawn_from[name].set_state(state)
        self._kept = {}

    def random_state(self, name: str) -> Tensor:
        """Return the state of a generator before the draws for the batch that is prepared ahead."""
        return self._kept[name] if self.prepared else self._drawn_from[name].get_state()

    def set_random_state(self, name: str, state: Tensor) -> None:
        """Set the state of a generator, and forget the prepared batch."""
        self.discard()
        self._drawn_from[name].set_state(state)

    def device_of(self, name: str) -> torch.device:
        return self._drawn_from[name].device

    @torch.no_grad()
    def _store(self, prepared: tuple[Tensor, Tensor]) -> None:
        for buffer, tensor in zip(self._next, prepared, strict=True):
            buffer.copy_(tensor)


class GeneratorOfSteps:
    """A random generator as the last step has left it; see `NextBatch.generators`."""

    def __init__(self, ahead: NextBatch, name: str) -> None:
        self._ahead, self._name = ahead, name

    @property
    def device(self) -> torch.device:
        return self._ahead.device_of(self._name)

    def get_state(self) -> Tensor:
        return self._ahead.random_state(self._name)

    def set_state(self, state: Tensor) -> GeneratorOfSteps:
        self._ahead.set_random_state(self._name, state)
        return self
