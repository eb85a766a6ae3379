"""Training on a device without float64, such as MPS: sums are exact, and no step or evaluation makes a float64 tensor.

The CPU stands in for the device, as if it had no float64.
"""

import signal
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from oekd_fast.common import devices
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation, HostBatches, ResizedCrop, Split
from oekd_fast.losses import backends
from oekd_fast.losses.reference import EnsembleKDOutput
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.random_state import capture_random_state, restore_random_state
from oekd_fast.runs.run import train
from oekd_fast.runs.summary import _device_name
from oekd_fast.training import metrics
from oekd_fast.training.metrics import RunningMetrics

from ..support.engines import CPU, make_batch, make_engine, make_teacher
from ..support.forked_runs import smallest_config
from ..support.small_runs import QUIET, assert_same_run, at_step


class WithoutFloat64(TorchDispatchMode):
    """Raise where a new tensor would be float64; the sums, which are float64 on the host, may be set to zero."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        new = (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf is not arguments[0])
        if any(leaf.dtype == torch.float64 for leaf in new):
            raise TypeError(f"{function}: the device does not support float64")
        return result


@pytest.fixture
def no_float64(monkeypatch):
    """Have the CPU lack float64, and calls of the loss choose the reference, as on a device without kernels."""
    monkeypatch.setattr(devices, "has_float64", lambda device: False)
    monkeypatch.setattr(backends.NativeBackend, "unavailable", lambda self: "not for this device")


def batches_of(count, students, seed=0):
    """Return random outputs of the loss with the number of images of each batch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        rows = int(torch.randint(1, 5000, (), generator=generator))
        losses = torch.rand(2 * students + 2, generator=generator) * 10
        correct = torch.randint(rows + 1, (students + 1,), generator=generator)
        yield EnsembleKDOutput(losses[0], losses[2 : 2 + students], losses[2 + students :], losses[1], correct), rows


@pytest.mark.parametrize("count", [1, metrics.BATCHES_KEPT - 1, metrics.BATCHES_KEPT, 2 * metrics.BATCHES_KEPT + 3])
def test_the_sums_are_those_of_a_device_with_float64_bit_for_bit(monkeypatch, count):
    with_float64 = RunningMetrics(3, CPU)
    monkeypatch.setattr(devices, "has_float64", lambda device: False)
    without, resumed = RunningMetrics(3, CPU), RunningMetrics(3, CPU)
    for number, (output, rows) in enumerate(batches_of(count, 3)):
        loss = torch.tensor(float("nan")) if number == 200 else output.loss
        images = torch.tensor(rows) if number % 2 else rows
        for sums in (with_float64, without):
            sums.update(output, images, torch.tensor(0.5), loss)
        if number == count // 2:
            resumed.load_state_dict(without.state_dict())
        elif number > count // 2:
            resumed.update(output, images, torch.tensor(0.5), loss)
    assert torch.equal(without.state_dict().nan_to_num(), with_float64.state_dict().nan_to_num())
    assert torch.equal(resumed.state_dict().nan_to_num(), with_float64.state_dict().nan_to_num())
    assert without.read().first_bad_step == (201 if count > 200 else None)
    without.reset()
    assert without.read().images == 0 and without.read().first_bad_step is None


def test_counts_are_exact_beyond_2_to_the_24(no_float64):
    sums, rows = RunningMetrics(1, CPU), 2**24 - 1
    output = EnsembleKDOutput(*torch.zeros(4, 1), torch.tensor([rows, rows - 1]))
    output = output._replace(loss=torch.zeros(()), ensemble_ce=torch.zeros(()))
    for _ in range(7):
        sums.update(output, rows, None, output.loss)
    read = sums.read()
    assert read.images == 7 * rows and read.accuracy == [100.0]
    assert read.ensemble_accuracy == 100.0 * ((7 * rows - 7) / (7 * rows))


CONFIGS = [
    {"precision": "bf16", "clip_norm": 1.0, "ema_decay": 0.9},
    {"optimizer": "adam", "objective": "one", "base_gradients": "pseudo_teacher"},
    {"optimizer": "rmsprop", "detach_ensemble": False, "label_smoothing": 0.1},
    {"objective": "fitnets", "teacher": "given"},
    {"objective": "codistillation", "codistillation_delay": 2},
]


CUTS = [Augmentation(pad=1, flip=True), ResizedCrop(7, flip=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "augmentation"), [(f, CUTS[i % 2]) for i, f in enumerate(CONFIGS)], ids=str)
def test_a_step_and_an_evaluation_make_no_float64_tensor(no_float64, monkeypatch, fields, augmentation):
    config = TrainConfig(num_students=2, warmup_epochs=0, executor="sequential", **fields)
    teacher = make_teacher() if "teacher" in fields else None
    engine = make_engine(config, augmentation=augmentation, teacher=teacher)
    batches = HostBatches(Split(*make_batch(16)), CPU)
    read, engine.evaluator._metrics.read = engine.evaluator._metrics.read, lambda: None  # reads on the CPU
    with WithoutFloat64():
        engine.begin_epoch(batches, torch.arange(16), 8)
        for _ in range(2):
            engine.step()
        engine.evaluator.evaluate(batches)
        engine.evaluator.probabilities(batches)
    assert engine.metrics.read().images == read().images == 16


def test_the_mode_of_these_tests_notices_float64():
    with WithoutFloat64(), pytest.raises(TypeError, match="does not support float64"):
        torch.zeros(2).double()


@pytest.mark.usefixtures("smallest_model")
def test_a_run_is_resumed_without_float64_to_the_same_end(tmp_path, monkeypatch, one_thread):
    config = replace(smallest_config(tmp_path / "data"), output_dir=tmp_path / "straight")
    train(config, QUIET)
    monkeypatch.setattr(devices, "has_float64", lambda device: False)
    other = replace(config, output_dir=tmp_path / "other")
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            train(other, QUIET)
    train(replace(other, resume=True), QUIET)
    assert_same_run(config.run_folder, other.run_folder)


def test_the_generator_of_mps_is_saved_and_restored(monkeypatch):
    states = [torch.arange(4, dtype=torch.uint8)]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    state = capture_random_state({})
    states.append(torch.zeros(4, dtype=torch.uint8))
    restore_random_state(state, {})
    assert torch.equal(states[-1], states[0]) and len(states) == 3
    del state["mps"]  # as in checkpoints of 0.1.0
    restore_random_state(state, {})
    assert len(states) == 3


def test_the_summary_names_the_device():
    assert _device_name(torch.device("mps")) == "mps"
    assert _device_name(CPU) == f"cpu, {torch.get_num_threads()} threads"
