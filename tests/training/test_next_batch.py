"""Batches that are prepared one step ahead: their random numbers, checkpoints inside an epoch, and streams."""

import copy
from contextlib import contextmanager

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation, DeviceBatches, HostBatches, Split
from oekd_fast.training import next_batch
from oekd_fast.training.next_batch import NextBatch

from ..support.engines import CPU, make_engine
from ..support.op_tape import TapeRecorder
from .test_channel_padding import SMALL

BATCH, ROWS = 4, 18
ORDER = torch.arange(ROWS).flip(0)


def batches_of(kind):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (ROWS, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return kind(Split(images, torch.randint(10, (ROWS,), generator=generator)), "cpu")


def engine_of(captured):
    config = TrainConfig(num_students=2, executor="sequential", warmup_epochs=0.0, mixup=0.2, learning_rate=0.01)
    augmentation = Augmentation(pad=1, flip=True, alternate=True)
    recorder = TapeRecorder(lambda: engine.tensors() | engine.evaluator.tensors()) if captured else None
    engine = make_engine(config, augmentation=augmentation, recorder=recorder, architecture=SMALL)
    return engine


def steps(engine, batches, count, first=0, epoch=0):
    engine.begin_epoch(batches, ORDER, BATCH, first, epoch)
    for _ in range(count):
        engine.step()


def states(engine):
    return {name: generator.get_state() for name, generator in engine.generators.items()}


def assert_same(ours, theirs):
    for name, state in states(theirs).items():
        assert torch.equal(states(ours)[name], state), name
    for part in ("model", "metrics"):
        one, other = (engine.state_dict()[part] for engine in (ours, theirs))
        for name in one if isinstance(one, dict) else [...]:
            assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("kind", [DeviceBatches, HostBatches])
def test_checkpoints_inside_an_epoch_are_those_of_steps_that_prepare_their_own_batch(kind, one_thread):
    eager, ahead, resumed = engine_of(False), engine_of(True), engine_of(True)
    batches = [batches_of(kind) for _ in range(3)]
    for engine, own in zip((eager, ahead), batches, strict=False):
        steps(engine, own, 3)
    assert ahead.eager_because is None and "next.pixels" in ahead.tensors().keys() - eager.tensors().keys()
    assert_same(ahead, eager)  # the fourth batch is prepared, and neither drawn nor counted
    resumed.load_state_dict(copy.deepcopy(ahead.state_dict()))
    for name, state in states(ahead).items():
        resumed.generators[name].set_state(state)
    for engine, own in zip((eager, ahead, resumed), batches, strict=True):
        if engine is not resumed:
            engine.step()
        else:
            steps(engine, own, 1, first=3)
        with pytest.raises(RuntimeError, match="no batch left"):
            engine.step()
        steps(engine, own, 1, epoch=1)
        steps(engine, own, 2, epoch=2)  # the epoch before was left with a batch prepared
    assert_same(ahead, eager)
    assert_same(resumed, eager)


class Stream:
    """A stream that logs what waits for what."""

    def __init__(self, name, log):
        self.name, self.log, self.device = name, log, CPU

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


def test_a_batch_is_prepared_between_fork_and_join_of_its_stream(monkeypatch):
    log = []
    current, side = Stream("step", log), Stream("side", log)

    @contextmanager
    def entered(stream):
        log.append(f"enter {stream.name}")
        yield
        log.append(f"leave {stream.name}")

    monkeypatch.setattr(next_batch.torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(next_batch.torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(next_batch.torch.cuda, "stream", entered)

    def prepare():
        log.append("prepare")
        return torch.zeros(2, 3), torch.zeros(2)

    ahead = NextBatch(prepare, {}, torch.device("cuda"))
    ahead.prepare_first()
    with pytest.raises(ValueError), ahead.prepared_beside():
        log.append("train")
        raise ValueError
    beside = ["side waits for step", "enter side", "prepare", "leave side", "train", "step waits for side"]
    assert log == ["prepare", *beside]


def test_a_discarded_batch_has_drawn_nothing_and_buffers_stay_for_batches_of_the_same_shape():
    generator, shape = torch.Generator().manual_seed(0), [2, 3]
    ahead = NextBatch(
        lambda: (torch.rand(shape, generator=generator), torch.arange(shape[0])), {"crops": generator}, CPU
    )
    before = generator.get_state()
    ahead.prepare_first()
    signature = ahead.signature
    assert torch.equal(ahead.generators["crops"].get_state(), before) and ahead.prepared
    assert not torch.equal(generator.get_state(), before)
    pixels, _ = ahead.take()
    ahead.discard()
    assert torch.equal(generator.get_state(), before) and not ahead.prepared
    ahead.prepare_first()
    assert torch.equal(ahead.take()[0], pixels) and ahead.signature == signature
    ahead.generators["crops"].set_state(before)
    assert torch.equal(generator.get_state(), before) and not ahead.prepared
    shape[0] = 4
    ahead.prepare_first()
    assert ahead.signature != signature and ahead.tensors()["target"].shape == (4,)
