"""Capture and replay of whole training steps, on the CPU, by a stand-in that replays operators without Python code."""

import copy
from pathlib import Path

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation, DeviceBatches, ResizedCrop, Split
from oekd_fast.parallel.executor import StudentError
from oekd_fast.training.graph_capture import STEPS_AHEAD, CapturedCalls, CaptureError, capture

from ..support.engines import make_engine, make_teacher
from ..support.op_tape import Tape, TapeRecorder

BATCH = 6
PAD_CROP_FLIP = Augmentation(pad=1, flip=True)
CONFIGS = {
    "sgd, cosine": {"schedule": "cosine", "warmup_epochs": 0.5},
    "adam, clipped, averaged": {"optimizer": "adam", "clip_norm": 0.5, "ema_decay": 0.9},
    "fp16, clipped": {"precision": "fp16", "clip_norm": 0.5, "learning_rate": 0.02},
    "bf16, one graph": {"precision": "bf16", "detach_ensemble": False},
    "micro-batches": {"micro_batches": 2, "clip_norm": 0.5},
    "alternating flips": {"augmentation": Augmentation(pad=1, flip=True, alternate=True)},
    "mixup and cutmix, micro-batches": {"mixup": 0.2, "cutmix": 1.0, "micro_batches": 2},
    "resized crops": {"augmentation": ResizedCrop(6, flip=True)},
}


def split(rows=26):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (rows, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(10, (rows,), generator=generator))


OBJECTIVES = {
    "one": {"objective": "one"},
    "codistillation": {"objective": "codistillation"},
    "codistillation, of copies": {"objective": "codistillation", "codistillation_delay": 2},
    "kd": {"objective": "kd", "teacher": "given"},
    "kd, a network of another image size": {"objective": "kd", "teacher": "resized"},
    "fitnets, hints of a teacher": {"objective": "fitnets", "teacher": "given"},
    "fsp": {"objective": "fsp"},
    "meal": {"objective": "meal"},
    "lit": {"objective": "lit"},
    "schedules": {"kd_schedule": "sigmoid", "temperature_schedule": "linear", "ramp_epochs": 1},
}


def engines(fault=None, at="", augmentation=PAD_CROP_FLIP, **fields):
    """Return the same engine twice, eager and captured, and the recorder, which raises `fault` at operator `at`."""
    # Sequential, because the recorder sees the operators of the calling thread alone.
    fields = {"num_students": 2, "epochs": 2, "executor": "sequential", "warmup_epochs": 0.0} | fields
    config = TrainConfig(**fields)
    size = 12 if config.teacher == Path("resized") else None
    teacher = None if config.teacher is None else make_teacher(size)
    eager = make_engine(config, augmentation=augmentation, teacher=teacher)
    recorder = TapeRecorder(lambda: recorded.tensors() | recorded.evaluator.tensors(), fault, at)
    recorded = make_engine(config, augmentation=augmentation, recorder=recorder, teacher=teacher)
    return eager, recorded, recorder


def everything(engine):
    state = copy.deepcopy(engine.state_dict())
    return state | {"random": {name: generator.get_state() for name, generator in engine.generators.items()}}


def assert_equal(one, two, where=""):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_equal(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list):
        for i, pair in enumerate(zip(one, two, strict=True)):
            assert_equal(*pair, f"{where}[{i}]")
    else:
        assert one == two, where


def train(engine, batches, epochs=2):
    torch.manual_seed(3)  # the students draw from the global generator
    for epoch in range(epochs):
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch))
        engine.begin_epoch(batches, order, BATCH, epoch=epoch)
        for _ in range(batches.num_batches(BATCH, drop_last=True)):
            engine.step()


@pytest.mark.slow
@pytest.mark.parametrize("fields", (CONFIGS | OBJECTIVES).values(), ids=CONFIGS | OBJECTIVES)
def test_replayed_steps_train_as_eager_ones_bit_for_bit(fields, one_thread):
    eager, recorded, recorder = engines(**fields)
    for engine in (eager, recorded):
        train(engine, DeviceBatches(split(), "cpu"))
    assert recorded.eager_because is None
    assert recorder.events == ["warm-up", "record"] + ["replay"] * 8
    assert_equal(everything(eager), everything(recorded))
    assert eager.metrics.read() == recorded.metrics.read()


@pytest.mark.slow
def test_a_step_is_captured_again_for_images_of_another_size_and_for_parts_of_batches(one_thread):
    spans = {"growth": (0.0, 0.25), "keep_hardest": 0.5, "hardest_between": (0.25, 0.75)}
    eager, recorded, recorder = engines(epochs=4, start_size=0.5, **spans)
    for engine in (eager, recorded):
        train(engine, DeviceBatches(split(14), "cpu"), epochs=4)
    assert recorded.eager_because is None
    small = kept = whole = ["warm-up", "record"]
    assert recorder.events == small + ["replay"] * 2 + kept + ["replay"] * 4 + whole + ["replay"] * 2
    assert_equal(everything(eager), everything(recorded))
    assert eager.metrics.read() == recorded.metrics.read()


@pytest.mark.slow
def test_replayed_steps_draw_new_random_numbers_in_the_students(one_thread):
    eager, recorded, _ = engines(model="efficientnet_b0", learning_rate=0.01)
    batches = DeviceBatches(split(), "cpu")
    with Tape():  # some operators of this network round differently under a dispatch mode
        train(eager, batches, epochs=1)
    train(recorded, batches, epochs=1)
    assert recorded.eager_because is None
    assert_equal(eager.state_dict()["model"], recorded.state_dict()["model"])


def test_capturing_a_step_changes_no_state(one_thread):
    _, recorded, recorder = engines(optimizer="adam", ema_decay=0.9)
    record = recorder.record
    recorder.record = lambda *args: (record(*args), lambda: None)[1]  # the captured step is never replayed
    warm_up, before, random = recorder.warm_up, {}, []

    def from_here_on(*args):
        before.update({name: tensor.clone() for name, tensor in recorded.tensors().items()})
        random.extend(g.get_state() for g in (recorded.generators["augmentation"], torch.default_generator))
        warm_up(*args)

    recorder.warm_up = from_here_on  # the first batch has been prepared
    recorded.begin_epoch(DeviceBatches(split(), "cpu"), torch.arange(26), BATCH)
    recorded.step()
    assert recorder.events == ["warm-up", "record"]
    after = recorded.tensors()
    created = {name: after.pop(name) for name in after.keys() - before.keys()}
    assert created and all(name.startswith("optimizer.") for name in created)
    assert not any(tensor.any() for tensor in created.values())  # as Adam creates them
    assert_equal(before, after)
    assert_equal(random, [g.get_state() for g in (recorded.generators["augmentation"], torch.default_generator)])


@pytest.mark.slow
def test_evaluation_is_captured_once_for_each_split(one_thread):
    eager, recorded, recorder = engines(ema_decay=0.5)
    results = []
    for engine in (eager, recorded):
        batches, held_out = DeviceBatches(split(), "cpu"), DeviceBatches(split(9), "cpu")
        train(engine, batches, epochs=1)
        evaluate = engine.evaluator.evaluate
        results.append([evaluate(held_out), evaluate(held_out), evaluate(DeviceBatches(split(), "cpu"))])
    assert results[0] == results[1]
    assert recorder.events.count("record") == 3
    assert [result.images for result in results[1]] == [9, 9, 26]


def test_the_host_is_at_most_three_steps_ahead_of_the_device(one_thread):
    _, recorded, recorder = engines()
    train(recorded, DeviceBatches(split(), "cpu"))
    assert recorder.marks == 8 and recorder.waits == 8 - STEPS_AHEAD


@pytest.mark.slow
def test_a_step_is_captured_again_for_other_batches(one_thread):
    eager, recorded, recorder = engines()
    for engine in (eager, recorded):
        for size in (26, 20):
            train(engine, DeviceBatches(split(size), "cpu"), epochs=1)
    assert recorder.events.count("record") == 2
    assert_equal(everything(eager), everything(recorded))


@pytest.mark.slow
def test_a_step_is_captured_again_after_a_state_was_loaded(one_thread):
    eager, recorded, recorder = engines()
    for engine in (eager, recorded):
        batches = DeviceBatches(split(), "cpu")
        train(engine, batches, epochs=1)
        engine.load_state_dict(copy.deepcopy(engine.state_dict()))
        train(engine, batches, epochs=1)
    assert recorder.events.count("record") == 2
    assert_equal(everything(eager), everything(recorded))


FAULTS = {
    "RuntimeError: operation not permitted when stream is capturing": RuntimeError(
        "operation not permitted when stream is capturing\nmore lines"
    ),
    "out of memory: a captured step keeps about 3.00 GB for itself, 1.25 GB are free": torch.OutOfMemoryError("full"),
}


PLACES = ("convolution_backward", "linalg_vector_norm", "_fused_sgd")


# The faults arise in the backward pass, in clipping and in the step of the optimizer. fp16 is slow on a CPU, so each
# kind of fault and each place occurs, but not every pair.
@pytest.mark.slow
@pytest.mark.parametrize(("line", "at"), zip([*FAULTS, next(iter(FAULTS))], PLACES, strict=True))
def test_a_step_that_cannot_be_captured_runs_eagerly_with_a_reason(line, at, one_thread):
    eager, recorded, recorder = engines(FAULTS[line], at, precision="fp16", clip_norm=0.5, learning_rate=0.02)
    for engine in (eager, recorded):
        train(engine, DeviceBatches(split(), "cpu"), epochs=1)
    assert recorded.eager_because == line
    assert recorder.events == ["warm-up", "record"]  # and no second attempt
    assert_equal(everything(eager), everything(recorded))


def test_out_of_memory_during_the_warm_up_gives_a_lower_bound_of_the_size():
    class Full(TapeRecorder):
        def warm_up(self, call, times):
            raise torch.OutOfMemoryError("full")

    with pytest.raises(CaptureError, match="^out of memory: a captured step keeps at least 3.00 GB for itself, 1.25"):
        capture(lambda: None, Full(dict), dict, [])


def test_an_optimizer_that_reads_overflow_on_the_host_is_not_captured():
    _, recorded, recorder = engines(precision="fp16", optimizer="rmsprop", learning_rate=1e-3)
    train(recorded, DeviceBatches(split(), "cpu"), epochs=1)
    assert recorded.eager_because == "rmsprop reads on the host whether fp16 gradients are finite"
    assert recorder.events == []


def test_out_of_memory_in_a_student_is_reported_as_out_of_memory():
    error = StudentError(0, "student 1: OutOfMemoryError: full")
    error.__cause__ = torch.OutOfMemoryError("full")

    def fail():
        raise error

    with pytest.raises(CaptureError, match="^out of memory: a captured step keeps at least 3.00 GB"):
        capture(fail, TapeRecorder(dict), dict, [])


def test_engines_that_do_not_capture_give_a_reason():
    assert make_engine(TrainConfig(num_students=1)).eager_because == "cpu has no CUDA graphs"
    assert make_engine(TrainConfig(num_students=1, capture=False)).eager_because == "capture is off"


class CountingRecorder:
    """Recorder whose replays run the call, and which fails in the warm-up or in the capture."""

    def __init__(self, failing=""):
        self.failing = failing

    def warm_up(self, call, times):
        if self.failing == "warm-up":
            raise RuntimeError("no warm-up")
        for _ in range(times):
            call()

    def record(self, call, generators):
        if self.failing == "capture":
            raise RuntimeError("no capture")
        return call

    def mark(self):
        return lambda: None


def counted(recorder, agree):
    count, votes = torch.zeros(()), []

    def vote(captured):
        votes.append(captured)
        return agree and captured

    calls = CapturedCalls(recorder, [], agree=vote)
    for _ in range(3):
        calls.run("train", 0, lambda: count.add_(1), lambda: {"count": count})
    return int(count), votes, calls.eager_because


def test_ranks_vote_once_whether_a_call_is_captured():
    assert counted(CountingRecorder(), agree=True) == (3, [True], None)
    assert counted(CountingRecorder(), agree=False) == (3, [True], "another rank cannot capture it")
    assert counted(CountingRecorder("capture"), agree=True) == (3, [False], "RuntimeError: no capture")


def test_a_warm_up_that_fails_on_one_rank_ends_it_because_the_others_wait():
    with pytest.raises(CaptureError, match="no warm-up") as error:
        counted(CountingRecorder("warm-up"), agree=True)
    assert error.value.in_warm_up
