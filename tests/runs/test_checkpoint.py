"""Checkpoints of a phase: saved whole or not at all, whatever interrupts a save."""

import errno
import hashlib
import os
import random
import resource
import shutil
import stat
import subprocess
import traceback
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from oekd_fast.runs import checkpoint
from oekd_fast.runs.checkpoint import (
    CheckpointError,
    load_latest_checkpoint,
    save_checkpoint,
)
from oekd_fast.runs.random_state import capture_random_state, restore_random_state

from ..support.checkpoints import flip_a_byte, names, state_of

KILLED = 77
# The warning is about thread pools of the parent, which the forked children do not use: they write files alone.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_child(action: Callable[[], None]) -> int:
    """Run `action` in a forked process and return its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at(call: int, moment: str) -> None:
    """Make this process die before or after the given call of any function that changes the folder."""
    calls = 0

    def counted(function):
        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == call and moment == "before":
                if function is real_fsync:
                    lose_unsynced_half(args[0])
                os._exit(KILLED)
            result = function(*args, **kwargs)
            if calls == call:
                os._exit(KILLED)
            return result

        return wrapper

    real_fsync = os.fsync
    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, counted(getattr(os, name)))


def lose_unsynced_half(descriptor: int) -> None:
    file = os.fstat(descriptor)
    if stat.S_ISREG(file.st_mode):
        os.ftruncate(descriptor, file.st_size // 2)


def test_a_checkpoint_loads_what_was_saved(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    schedule.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": capture_random_state({"augmentation": torch.Generator()}),
        "best": {"accuracy": 81.5, "epoch": None, "names": ["a", "b"], "shape": (3, 2), "done": False},
    }
    path = save_checkpoint(tmp_path / "new" / "checkpoints", state, step=1234)
    loaded = load_latest_checkpoint(path.parent)

    assert loaded.path == path and path.name == "step-0000001234.pt" and loaded.step == 1234
    assert loaded.state["best"] == state["best"]
    assert loaded.state["schedule"] == state["schedule"]
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state["model"][name], value)
    momentum = loaded.state["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, optimizer.state_dict()["state"][0]["momentum_buffer"])
    assert torch.load(path, weights_only=True).keys() == state.keys()


def test_the_checksum_is_in_the_format_of_sha256sum(tmp_path):
    path = save_checkpoint(tmp_path, state_of(7), step=7)
    expected = f"{hashlib.sha256(path.read_bytes()).hexdigest()}  step-0000000007.pt\n"
    assert (tmp_path / "step-0000000007.pt.sha256").read_text() == expected
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "step-0000000007.pt.sha256"], cwd=tmp_path, check=True)


def test_a_folder_without_checkpoints_loads_none(tmp_path):
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    assert load_latest_checkpoint(tmp_path) is None
    assert load_latest_checkpoint(tmp_path / "missing") is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_steps_are_kept(tmp_path, keep):
    for step in range(1, 6):
        save_checkpoint(tmp_path, state_of(step), step, keep)
    kept = [f"step-{step:010d}.pt" for step in range(6 - keep, 6)]
    assert names(tmp_path) == sorted([*kept, *(name + ".sha256" for name in kept)])


def test_other_files_in_the_folder_are_kept(tmp_path):
    others = ["best.pt", "step-12.pt", "step-0000000001.pt.bak", "x.tmp", "notes.sha256"]
    for name in others:
        (tmp_path / name).write_text("mine")
    for step in (1, 2):
        save_checkpoint(tmp_path, state_of(step), step, keep=1)
    assert set(others) <= set(names(tmp_path))


def test_saving_a_step_again_supersedes_it(tmp_path):
    save_checkpoint(tmp_path, state_of(1), step=1)
    for revision in range(12):
        path = save_checkpoint(tmp_path, state_of(2, revision), step=2)
    assert load_latest_checkpoint(tmp_path).state["revision"] == 11
    assert path.name == "step-0000000002-r11.pt"
    assert [name for name in names(tmp_path) if name.endswith(".pt")] == ["step-0000000001.pt", path.name]


def test_a_damaged_later_step_is_removed_by_a_save(tmp_path):
    save_checkpoint(tmp_path, state_of(1), step=1)
    flip_a_byte(save_checkpoint(tmp_path, state_of(9), step=9))
    save_checkpoint(tmp_path, state_of(5), step=5, keep=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_latest_checkpoint(tmp_path).step == 5


def test_saving_before_an_intact_later_step_raises(tmp_path):
    save_checkpoint(tmp_path, state_of(9), step=9)
    with pytest.raises(CheckpointError, match=r"step-0000000009\.pt is later than the step to save, 5"):
        save_checkpoint(tmp_path, state_of(5), step=5)
    assert load_latest_checkpoint(tmp_path).step == 9


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
    ("before", "step", "revision", "keep"),
    [((), 1, 0, 1), ((1,), 2, 0, 1), ((1,), 1, 1, 1), ((1, 2), 3, 0, 2), ((1, 2), 2, 1, 1)],
    ids=["first", "new step", "same step", "new step of many", "same step of many"],
)
def test_a_kill_at_any_moment_leaves_an_intact_checkpoint(tmp_path, before, step, revision, keep):
    def attempt(folder: Path, call: int, moment: str) -> int:
        for earlier in before:
            save_checkpoint(folder, state_of(earlier), earlier)

        def save() -> None:
            kill_at(call, moment)
            save_checkpoint(folder, state_of(step, revision), step, keep)

        return in_child(save)

    for moment in ("before", "after"):
        for call in range(1, 100):
            folder = tmp_path / f"{moment}{call}"
            status = attempt(folder, call, moment)
            assert status in (0, KILLED)

            assert {path.name + ".sha256" for path in folder.glob("*.pt")} <= set(names(folder))
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                loaded = load_latest_checkpoint(folder)
            if loaded is None:
                assert not before and status == KILLED
            else:
                found = (loaded.state["step"], loaded.state["revision"])
                new = (step, revision)
                assert found == new if status == 0 or not before else found in (new, (before[-1], 0))

            save_checkpoint(folder, state_of(10), step=10, keep=1)
            assert names(folder) == ["step-0000000010.pt", "step-0000000010.pt.sha256"]
            if status == 0:
                break
        assert 6 <= call < 100  # three files or folders synced, two renamed, and the end


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("step", [1, 2], ids=["same step", "new step"])
def test_a_file_over_the_size_limit_leaves_the_previous_checkpoint(tmp_path, step):
    previous = save_checkpoint(tmp_path, state_of(1), step=1)
    large = {"weights": torch.zeros(100_000)}

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # CPython ignores SIGXFSZ
        with pytest.raises(CheckpointError) as caught:
            save_checkpoint(tmp_path, large, step)
        message = str(caught.value)
        assert message.startswith(f"could not write the checkpoint of step {step} (40")
        assert os.strerror(errno.EFBIG) in message
        assert message.endswith(f"the last good checkpoint is {previous}")

    assert in_child(save) == 0
    assert names(tmp_path) == ["step-0000000001.pt", "step-0000000001.pt.sha256"]
    assert load_latest_checkpoint(tmp_path).step == 1


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, function, failing_call):
    save_checkpoint(tmp_path, state_of(1), step=1)
    real, calls = getattr(os, function), []

    def full(*args):
        calls.append(args)
        if len(calls) == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(checkpoint.os, function, full)
    with pytest.raises(CheckpointError, match=r"No space left on device; the last good .*step-0000000001\.pt$"):
        save_checkpoint(tmp_path, state_of(2), step=2)
    assert names(tmp_path) == ["step-0000000001.pt", "step-0000000001.pt.sha256"]


def test_a_first_checkpoint_that_cannot_be_written_raises(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="step 3 .*; there is no earlier good checkpoint"):
        save_checkpoint(tmp_path / "file" / "checkpoints", state_of(3), step=3)


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float64(1), r"state\['a'\]\[0\]: expected .* got numpy.float64"),
        (Point(1, 2), r"state\['a'\]\[0\]: expected .* got .*Point"),
        ({Path("x"): 1}, r"state\['a'\]\[0\], a key: expected .* got pathlib"),
        ({"b": {1, 2}}, r"state\['a'\]\[0\]\['b'\]: expected .* got builtins.set"),
    ],
)
def test_types_that_could_not_be_loaded_raise(tmp_path, value, message):
    with pytest.raises(TypeError, match=message):
        save_checkpoint(tmp_path, {"a": [value]}, step=1)
    assert names(tmp_path) == []


def test_numbers_out_of_range_raise(tmp_path):
    with pytest.raises(ValueError, match="step: expected an integer >= 0, got -1"):
        save_checkpoint(tmp_path, {}, step=-1)
    with pytest.raises(ValueError, match="keep: expected an integer >= 1, got 0"):
        save_checkpoint(tmp_path, {}, step=1, keep=0)


def draw(generators):
    return [
        *(random.random() for _ in range(3)),
        random.gauss(0, 1),
        *np.random.rand(3).tolist(),
        np.random.standard_normal(),
        *torch.rand(3).tolist(),
        *(torch.rand(3, generator=g).tolist() for g in generators.values()),
        *(torch.rand(3, device=f"cuda:{i}").tolist() for i in range(torch.cuda.device_count())),
    ]


def test_random_state_continues_bit_for_bit_after_a_checkpoint(tmp_path):
    generators = {"order": torch.Generator().manual_seed(3), "crop": torch.Generator().manual_seed(4)}
    draw(generators)  # Python's and numpy's generators then hold one cached Gaussian
    save_checkpoint(tmp_path, {"random": capture_random_state(generators)}, step=1)
    expected = [draw(generators) for _ in range(2)]

    restore_random_state(load_latest_checkpoint(tmp_path).state["random"], generators)
    assert [draw(generators) for _ in range(2)] == expected
    fresh = {name: torch.Generator() for name in generators}
    restore_random_state(load_latest_checkpoint(tmp_path).state["random"], fresh)
    assert [draw(fresh) for _ in range(2)] == expected


def test_other_names_of_generators_raise():
    state = capture_random_state({"order": torch.Generator()})
    with pytest.raises(ValueError, match=r"generators: expected the names \['order'\], got \['crop'\]"):
        restore_random_state(state, {"crop": torch.Generator()})


def test_a_generator_of_another_device_raises():
    state = capture_random_state({"order": torch.Generator()})
    state["generators"]["order"] = torch.zeros(16, dtype=torch.uint8)  # the size of a CUDA generator's state
    with pytest.raises(ValueError, match="generators: 'order' on cpu cannot take the saved state"):
        restore_random_state(state, {"order": torch.Generator()})


@pytest.mark.parametrize("late", [False, True], ids=["before the rename", "after the rename"])
def test_a_signal_during_the_last_rename_leaves_no_checkpoint_without_its_checksum(tmp_path, monkeypatch, late):
    save_checkpoint(tmp_path, state_of(1), step=1)
    real = os.replace

    def interrupted(source, target):
        last = str(target).endswith(".pt")
        if late or not last:
            real(source, target)
        if last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, state_of(2), step=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_latest_checkpoint(tmp_path).step == (2 if late else 1)
    steps = (1, 2) if late else (1,)
    assert names(tmp_path) == [f"step-{step:010d}.pt{suffix}" for step in steps for suffix in ("", ".sha256")]
