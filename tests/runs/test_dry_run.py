"""Dry runs: the plan agrees with the run that follows, and nothing is written or changed."""

import os
import random
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from oekd_fast import register_architecture
from oekd_fast.config.epoch_work import epoch_work
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed.world import ALONE
from oekd_fast.runs import dry_run as dry_runs
from oekd_fast.runs import rehearsal
from oekd_fast.runs.dry_run import dry_run
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.rehearsal import Range, Rehearsal, rehearse
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolderError
from oekd_fast.runs.run_plan import PhasePlan
from oekd_fast.runs.show_plan import print_plan
from oekd_fast.runs.time_left import PhaseWork
from oekd_fast.train import main
from oekd_fast.training.engine import Engine

from ..support.small_runs import QUIET, at_step, command_line
from ..support.smooth_network import SMOOTH


def files(folder) -> dict:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def plan_of():
    """Return a function that makes the plan of a config from as few steps as possible."""
    return lambda config: dry_run(config, seconds=0.0)


def test_the_plan_is_that_of_the_run_that_follows(smallest, plan_of, tmp_path):
    config = replace(smallest, epochs=2, baseline=True)
    plan = plan_of(config)
    assert list(tmp_path.iterdir()) == []
    summary = train(config, QUIET)
    assert (plan.data.classes, plan.data.image_shape, plan.data.pixel_bytes) == (3, (3, 8, 8), 120 * 3 * 8 * 8)
    assert plan.data.images == {"train": 72, "validation": 18, "test": 30} and plan.data.held_out == ("validation",)
    sizes = [(student["parameters"], student["flops"]) for student in summary["students"]]
    assert [(facts.parameters, facts.flops) for facts in plan.family.students] == sizes
    together = summary["ensemble"]
    assert (plan.family.ensemble.parameters, plan.family.ensemble.flops) == (together["parameters"], together["flops"])
    assert [phase.name for phase in plan.phases] == list(summary["phases"])
    assert {(phase.epochs, phase.steps_per_epoch, phase.steps_left) for phase in plan.phases} == {(2, 3, 6)}
    assert (plan.batch_size, plan.executor, plan.processes, plan.latency_seconds) == (20, "sequential", 1, 0.0)
    assert plan.config == replace(config, precision="fp32") and plan.folder == config.run_folder
    assert plan.device_bytes is None and (plan.host_bytes is None or plan.host_bytes > 50e6)
    written = [path.stat().st_size for path in files(config.run_folder) if path.suffix in (".pt", ".safetensors")]
    # Checkpoints also hold metrics and the states of random generators; files of students have a header.
    assert plan.disk_bytes < sum(written) < plan.disk_bytes + 40_000 * len(written)


def test_random_numbers_and_threads_stay_the_same(smallest, plan_of):
    before = random.getstate(), torch.get_rng_state(), torch.get_num_threads()
    plan_of(replace(smallest, threads=2))
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    assert torch.get_num_threads() == before[2]


@pytest.mark.parametrize(
    ("changes", "phases"),
    [
        ({"pretrain_epochs": 2}, [("pretraining", 2), ("ensemble", 3)]),
        ({"objective": "born_again", "generations": 2}, [("generation_1", 3), ("ensemble", 3)]),
        ({"objective": "snapshot", "schedule": "cyclic", "snapshots": 3}, [("ensemble", 3)]),
    ],
)
def test_phases_of_other_objectives(smallest, plan_of, changes, phases):
    plan = plan_of(replace(smallest, epochs=3, **changes))
    assert [(phase.name, phase.epochs) for phase in plan.phases] == phases
    assert len(plan.family.students) == (1 if "objective" in changes else 2)
    assert (plan.family.ensemble is None) == ("objective" in changes)


def test_a_resumed_run_has_the_steps_that_are_left(smallest, plan_of, monkeypatch):
    config = replace(smallest, epochs=2, baseline=True)
    with monkeypatch.context() as patch:
        at_step(patch, 2 * 3 + 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            train(config, QUIET)
    before = files(config.run_folder)
    plan = plan_of(replace(config, resume=True))
    assert [phase.steps_left for phase in plan.phases] == [0, 1, 6]
    assert files(config.run_folder) == before


def test_errors_are_those_of_the_run(smallest, plan_of, tmp_path):
    train(smallest, QUIET)
    before = files(tmp_path)
    for config, error in (
        (smallest, RunFolderError),
        (replace(smallest, resume=True, batch_size=9), RunFolderError),
        (replace(smallest, output_dir=tmp_path / "other", device="no"), ValueError),
        (replace(smallest, output_dir=tmp_path / "other", dataset=str(tmp_path / "missing")), ValueError),
        (replace(smallest, output_dir=tmp_path / "other", batch_size=1), ValueError),
    ):
        messages = []
        for function in (plan_of, lambda config: train(config, QUIET)):
            with pytest.raises(error) as raised:
                function(config)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]
    assert files(tmp_path) == before


def phase_of(**changes):
    """Return a stand-in for a phase of 10 epochs of 4 steps, without students."""
    values = {"name": "ensemble", "epochs": 10, "steps_per_epoch": 4, "batch_size": 20}
    ensemble = nn.Module()
    ensemble.members = ()
    return SimpleNamespace(**values | changes, engine=SimpleNamespace(ensemble=ensemble))


DONE = Rehearsal(
    warm_up=5.0, step=Range(1.0, 2.0, 4.0), validation=3.0, test=7.0, checkpoint=0.5,
    checkpoint_bytes=1000, model_bytes=100, metrics=None,
)  # fmt: skip
WORK = PhaseWork("ensemble", 10, 0, 1.0)


@pytest.mark.parametrize(
    ("options", "steps_left", "epoch", "total", "disk"),
    [
        # 40 steps, 10 x 3 s of validation, 10 x 0.5 s of checkpoints, 5 s, 1 s of construction, 7 s of test (or 14 s).
        ({}, 40, (7, 11, 19), (88, 135, 215), 2000),
        ({"checkpoint_every": 5}, 40, (7, 11, 19), (84, 131, 211), 2000),
        ({"checkpoint_every": 100}, 40, (7, 11, 19), (83.5, 130.5, 210.5), 1000),
        ({"track_test": True}, 40, (14, 18, 26), (158, 205, 285), 2000),
        # 3 evaluations in 10 epochs, of which 2 are left after half an epoch of the second half.
        ({"evaluate_every": 4}, 40, (4.9, 8.9, 16.9), (67, 114, 194), 2000),
        ({"evaluate_every": 4}, 18, (4.9, 8.9, 16.9), (39.25, 64.25, 100.25), 2000),
        ({"evaluate_every": 20, "track_test": True}, 40, (5, 9, 17), (68, 115, 195), 2000),
        ({"test_flips": True}, 40, (7, 11, 19), (102, 149, 229), 2000),
        ({}, 20, (7, 11, 19), (50.5, 77.5, 117.5), 2000),
        ({}, 0, (7, 11, 19), (8, 15, 15), 2000),
        ({"objective": "snapshot", "schedule": "cyclic"}, 40, (7, 11, 19), (88, 135, 215), 3000),
    ],
)
def test_what_a_phase_takes(options, steps_left, epoch, total, disk):
    plan = PhasePlan.of(phase_of(), WORK, steps_left, 1.0, DONE, TrainConfig(epochs=10, **options))
    assert (plan.epoch, plan.total, plan.disk_bytes) == (Range(*epoch), Range(*total), disk)


def test_epochs_that_cost_less_take_less():
    half = replace(WORK, costs=(0.5,) * 5 + (1.0,) * 5)
    plan = PhasePlan.of(phase_of(), half, 40, 1.0, DONE, TrainConfig(epochs=10))
    # 20 steps of half the cost and 20 whole ones; the other seconds are those of test_what_a_phase_takes.
    assert plan.step == Range(0.75, 1.5, 3.0)
    assert (plan.epoch, plan.total) == (Range(6.0, 9.0, 15.0), Range(78.0, 115.0, 175.0))
    left = PhasePlan.of(phase_of(), half, 22, 1.0, DONE, TrainConfig(epochs=10)).total
    whole = PhasePlan.of(phase_of(), WORK, 22, 1.0, DONE, TrainConfig(epochs=10)).total
    assert left == whole + Range(-1.0, -2.0, -4.0)  # two steps of half the cost are left


def test_the_steps_that_are_timed_are_those_of_the_epoch_with_the_highest_cost(smallest, monkeypatch):
    epochs = []

    def begin_epoch(self, *arguments, epoch=0):
        epochs.append(epoch)
        begun(self, *arguments, epoch=epoch)

    begun = Engine.begin_epoch
    monkeypatch.setattr(Engine, "begin_epoch", begin_epoch)
    config = replace(smallest, epochs=10, batch_size=20, start_size=0.5, keep_hardest=0.5, hardest_between=(0.9, 1.0))
    plan = dry_run(config, seconds=0.0)
    assert set(epochs) == {8}
    works = [epoch_work(config, epoch, 10) for epoch in range(10)]
    assert [work.side for work in works] == pytest.approx([0.5] * 6 + [2 / 3, 5 / 6] + [1.0] * 2)
    assert plan.phases[0].step.expected > 0


def test_steps_are_timed_without_the_first_ones(monkeypatch):
    """The clock moves by the duration of each step; the first two are slow."""
    clock, durations = [0.0], iter([9.0, 3.0] + [1.0, 2.0] * 50)

    def step():
        clock[0] += next(durations)

    engine = SimpleNamespace(begin_epoch=lambda *_, **__: None, step=step, metrics=SimpleNamespace(read=lambda: None))
    train_batches = SimpleNamespace(order=lambda generator: None)
    monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: clock[0])
    phase = SimpleNamespace(engine=engine, batch_size=1, steps_per_epoch=3)
    warm_up, samples = rehearsal._time_steps(rehearsal._Steps(phase, train_batches, 0), 100.0, ALONE)
    assert warm_up == [9.0, 3.0, 1.0] and samples[:3] == [2.0, 1.0, 2.0]
    assert len(samples) == rehearsal.MOST_SAMPLES


def shown(plan, width) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        print_plan(console, plan)
    return capture.get()


@pytest.mark.parametrize("width", [80, 40])
def test_what_is_printed(smallest, plan_of, width):
    plan = plan_of(replace(smallest, baseline=True, patience=1, evaluate_every=5))
    plan = replace(plan, data=replace(plan.data, name="colours"), folder="runs/x", latency_seconds=20.0)
    text = shown(plan, width)
    lines = text.splitlines()
    assert "\x1b" not in text and "…" not in text
    assert max(map(len, lines)) <= 80
    for line in (
        "Data: colours, 3 classes, images of 8 x 8 x 3",
        "  72 training, 18 validation, 30 test images, 23.0 kB",
        "  the validation images are held out, 0.2 of the training images",
        f"Family: {smallest.model} x 2, objective oekd",
        "  batches of 20 images, 3 steps an epoch; sgd, multistep learning rate from 0.05",
        "  validation images evaluated every 5 epochs and after the last one",
        "  less if a phase ends early (--patience 1)",
        "  and at most 20 s to measure latency at the end (--latency off skips it)",
        "Nothing was written.",
    ):
        assert line in lines
    assert {line.split()[0] for line in lines if line} >= {"ensemble", "baseline_1", "baseline_2"}


@pytest.mark.parametrize(
    ("objective", "others"),
    [
        ({"objective": "oekd"}, ", with those of adapters"),
        ({"objective": "meal"}, ", with those of adapters and critics"),
        ({"objective": "lit", "model": "smooth"}, ", with those of adapters and inlets"),
        ({"objective": "born_again", "generations": 1}, ""),
    ],
    ids=str,
)
def test_modules_that_training_alone_uses_are_named(smallest, plan_of, objective, others):
    register_architecture(SMOOTH)
    plan = plan_of(replace(smallest, **objective))
    assert f"  {plan.family.trained_parameters:,} parameters to train{others}\n" in shown(plan, 80)


def test_the_command_prints_the_plan_and_writes_nothing(smallest, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dry_runs, "rehearse", lambda phase, work, inputs, seconds: rehearse(phase, work, inputs, 0.0))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    assert main([*command_line(replace(smallest, output_dir="run")), "--dry-run"]) == 0
    output, errors = capsys.readouterr()
    assert output.endswith(" in run\nNothing was written.\n") and errors == ""
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_dry_run_ends_quietly(smallest, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("oekd_fast.runs.dry_run.rehearse", interrupted)
    assert main([*command_line(smallest), "--dry-run"]) == 130
    assert tuple(capsys.readouterr()) == ("", "") and list(tmp_path.iterdir()) == []


def test_an_error_of_a_dry_run_is_one_line(smallest, capsys):
    assert main([*command_line(replace(smallest, batch_size=1)), "--dry-run"]) == 1
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1
    assert errors.startswith("error: batch_size: training needs batches of at least 2 images")


def test_the_option_is_not_part_of_the_config():
    assert not [name for name in TrainConfig().as_dict() if "dry" in name]
