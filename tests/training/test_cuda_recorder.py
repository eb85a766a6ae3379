"""`CudaRecorder` after failed captures, with a stand-in for torch.cuda that fails as torch does."""

from contextlib import contextmanager

import pytest
import torch

from oekd_fast.distributed.world import LostRankError
from oekd_fast.training.cuda_recorder import CudaRecorder


class StandIn:
    """A device: its current stream, its allocator, the generators in a capture, and the mode of synchronisation."""

    def __init__(self, monkeypatch, end_fault=None):
        self.current, self.allocating, self.end_fault = "default", False, end_fault
        self.sync_mode, self.in_capture = 0, set()
        this = self

        class Stream:
            device_index = 0

            def __init__(self, device=None, name="captures"):
                self.name = name

            def wait_stream(self, other):
                pass

        class Graph:
            def __init__(self):
                self.generators = []

            def register_generator_state(self, generator):
                self.generators.append(generator)

            def replay(self):
                pass

        class Capture:
            """Ends as in torch 2.11: if the end raises, nothing is restored."""

            def __init__(self, graph, pool=None, stream=None, capture_error_mode="global"):
                self.graph, self.stream = graph, stream

            def __enter__(self):
                self.before, this.current = this.current, self.stream.name
                assert not this.allocating
                this.allocating = True
                this.in_capture |= set(self.graph.generators)

            def __exit__(self, *error):
                fault, this.end_fault = this.end_fault, None
                if fault is not None:
                    raise fault
                this.allocating, this.current = False, self.before
                this.in_capture -= set(self.graph.generators)

        @contextmanager
        def on(stream):
            before, this.current = this.current, stream.name
            try:
                yield
            finally:
                this.current = before

        def end_allocations(device, pool):
            if not this.allocating:
                raise RuntimeError("not currently recording to mempool_id")
            this.allocating = False

        def set_mode(mode):
            this.sync_mode = {"error": 2}.get(mode, mode)

        names = {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "graph": Capture,
            "stream": on,
            "current_stream": lambda device=None: Stream(name=this.current),
            "set_stream": lambda stream: setattr(this, "current", stream.name),
            "graph_pool_handle": lambda: (0, 1),
            "synchronize": lambda device=None: None,
            "memory_allocated": lambda device=None: 0,
            "max_memory_allocated": lambda device=None: 0,
            "reset_peak_memory_stats": lambda device=None: None,
            "get_sync_debug_mode": lambda: this.sync_mode,
            "set_sync_debug_mode": set_mode,
        }
        for name, value in names.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_allocations, raising=False)

    def is_restored(self):
        return (self.current, self.allocating, self.in_capture, self.sync_mode) == ("default", False, set(), 0)


def fail():
    raise ValueError("the call's own fault")


@pytest.mark.parametrize("end_fault", [None, RuntimeError("capture invalidated")], ids=["ends", "does not end"])
def test_the_error_of_the_call_is_raised_and_the_capture_ends(monkeypatch, end_fault):
    device = StandIn(monkeypatch, end_fault)
    with pytest.raises(ValueError, match="the call's own fault"):
        CudaRecorder(torch.device("cpu")).record(fail, ["generator"])
    assert device.is_restored()


def test_a_capture_that_fails_at_its_end_is_abandoned(monkeypatch):
    device = StandIn(monkeypatch, RuntimeError("unjoined work"))
    recorder = CudaRecorder(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="unjoined work"):
        recorder.record(lambda: None, ["generator"])
    assert device.is_restored()
    recorder.record(lambda: None, ["generator"])  # a new capture succeeds
    assert device.is_restored()


def test_the_last_warm_up_raises_if_it_waits_for_the_device(monkeypatch):
    device, modes = StandIn(monkeypatch), []
    recorder = CudaRecorder(torch.device("cpu"))
    recorder.warm_up(lambda: modes.append((device.current, device.sync_mode)), 3)
    assert modes == [("captures", 0), ("captures", 0), ("captures", 2)] and device.is_restored()

    def wait():
        if device.sync_mode == 2:
            raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        recorder.warm_up(wait, 3)
    assert device.sync_mode == 0


class Event:
    """An event that the device reaches after some queries."""

    def __init__(self, queries):
        self.left = queries

    def record(self, stream):
        pass

    def synchronize(self):
        self.left = 0

    def query(self):
        self.left -= 1
        return self.left < 0


def test_waiting_for_a_step_ends_at_the_deadline(monkeypatch):
    StandIn(monkeypatch)
    recorder = CudaRecorder(torch.device("cpu"), deadline=0.05)
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking: Event(3))
    recorder.mark()()
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking: Event(10**9))
    with pytest.raises(LostRankError, match=r"^a step did not end within 0.05 s; another rank may have ended$"):
        recorder.mark()()


def test_a_process_alone_waits_without_a_deadline(monkeypatch):
    StandIn(monkeypatch)
    event = Event(10**9)
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking: event)
    CudaRecorder(torch.device("cpu")).mark()()
    assert event.left == 0
