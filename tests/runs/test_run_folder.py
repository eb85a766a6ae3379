"""The run folder: new, resumed, in use by another run, damaged."""

import errno
import os
from dataclasses import replace

import pytest

from oekd_fast.common.checked_json import load_checked
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.runs import run_folder
from oekd_fast.runs.folder_lock import FolderInUseError
from oekd_fast.runs.run_folder import RunFolder, RunFolderError, check_same_training


@pytest.fixture
def stored(tmp_path):
    """A folder that holds the run of the returned config."""
    config = TrainConfig(output_dir=tmp_path / "run")
    RunFolder(config).claim(config)
    return config


def resumed(config: TrainConfig, **changes) -> TrainConfig:
    return TrainConfig.from_dict({**config.as_dict(), **changes, "resume": True})


def test_nothing_is_written_before_claim(tmp_path):
    config = TrainConfig(output_dir=tmp_path / "run")
    folder = RunFolder(config)
    assert not config.output_dir.exists()
    folder.claim(config)
    assert load_checked(folder.config_file.read_text()) == config.as_dict()


def test_a_folder_with_a_run_is_an_error_without_resume(stored):
    with pytest.raises(RunFolderError, match="output_dir: .* already holds a run; --resume continues it"):
        RunFolder(stored)
    RunFolder(resumed(stored))


def test_another_training_names_every_field_that_differs(stored):
    with pytest.raises(RunFolderError) as raised:
        RunFolder(resumed(stored, epochs=3, temperature=4.0))
    assert str(raised.value) == (
        f"the config does not match {stored.output_dir / 'config.json'}; "
        "temperature: expected 2.0, got 4.0; epochs: expected 40, got 3"
    )


def test_fields_that_do_not_change_the_training_may_differ(stored):
    RunFolder(resumed(stored, progress=False, executor="sequential", baseline=True, track_test=True))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1]", "expected a JSON object, got list"),
        ('{"epochs": 0}', "epochs: expected an integer >= 1, got 0"),
        ('{"epochs": "40"}', "epochs: expected an integer >= 1, got '40'"),
    ],
)
def test_a_damaged_config_is_named(stored, content, reason):
    file = stored.output_dir / "config.json"
    file.write_text(content)
    with pytest.raises(RunFolderError) as raised:
        RunFolder(resumed(stored))
    assert str(raised.value).startswith(f"output_dir: {file} is damaged ({reason}")


@pytest.mark.parametrize(
    "before",
    [
        {},
        {"learning_rate": None, "temperature": None},
        {"learning_rate": 0.1, "temperature": 2.0},
        {"a_field_of_another_version": 1},
    ],
)
def test_missing_and_unset_fields_have_their_defaults(before):
    check_same_training(before, TrainConfig(), "config.json")
    with pytest.raises(RunFolderError, match=r"config.json; learning_rate: expected 0\.1, got 0\.2"):
        check_same_training(before, TrainConfig(learning_rate=0.2), "config.json")
    check_same_training({"optimizer": "adam", **before, "learning_rate": None}, TrainConfig(optimizer="adam"), "x")


def test_metrics_are_replaced_and_appended(stored):
    folder = RunFolder(resumed(stored))
    folder.add_metrics({"epoch": 1})
    folder.write_metrics([{"epoch": 7}])
    folder.add_metrics({"epoch": 8})
    lines = folder.metrics_file.read_text().splitlines()
    assert [load_checked(line) for line in lines] == [{"epoch": 7}, {"epoch": 8}]


def test_a_folder_is_locked_while_it_is_used(stored):
    config = resumed(stored)
    with RunFolder(config) as folder:
        folder.claim(config)
        with pytest.raises(FolderInUseError, match=f"output_dir: {folder.path} is in use by process {os.getpid()} on"):
            RunFolder(config).__enter__()
        with pytest.raises(FolderInUseError):  # rather than that --resume would continue it
            RunFolder(stored)
    with RunFolder(config):
        pass
    assert not (stored.output_dir / "run.lock").exists()


def test_a_new_folder_is_locked_when_it_is_created(tmp_path):
    config = TrainConfig(output_dir=tmp_path / "run")
    with RunFolder(config) as first, RunFolder(config) as second:
        first.claim(config)
        with pytest.raises(FolderInUseError):
            second.claim(config)
    with RunFolder(replace(config, resume=True)) as first:
        first.claim(config)


def test_a_run_that_another_process_started_meanwhile_is_not_overwritten(tmp_path):
    config = TrainConfig(output_dir=tmp_path / "run")
    with RunFolder(config) as late:
        with RunFolder(config) as early:
            early.claim(config)
        with pytest.raises(RunFolderError, match="already holds a run"):
            late.claim(config)


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/ensemble", "students", "baselines"])
def test_folders_that_are_links_are_refused(stored, tmp_path, name):
    (tmp_path / "outside").mkdir()
    link = stored.output_dir / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "outside")
    with (
        pytest.raises((RunFolderError, OSError), match=f"expected a folder, got a symbolic link.*{name}"),
        RunFolder(resumed(stored)) as folder,
    ):
        folder.claim(resumed(stored), "ensemble")
    assert list((tmp_path / "outside").iterdir()) == []


def test_links_in_the_place_of_files_are_not_followed(stored, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    folder = RunFolder(resumed(stored))
    for file in (folder.metrics_file, folder.summary_file, folder.report_file):
        file.symlink_to(outside)
    folder.write_metrics([])
    folder.add_metrics({"epoch": 1})
    folder.write_summary({})
    assert outside.read_text() == "mine"


def test_temporary_files_of_killed_processes_are_removed(stored):
    left = stored.output_dir / "students" / "student_1.json.0123456789abcdef.tmp"
    left.parent.mkdir()
    left.touch()
    (stored.output_dir / "notes.tmp").touch()
    with RunFolder(resumed(stored)) as folder:
        folder.claim(resumed(stored))
    assert not left.exists() and (stored.output_dir / "notes.tmp").exists()


def test_a_folder_that_cannot_be_written_is_named_before_training(stored, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(run_folder.tempfile, "TemporaryFile", fail)
    with RunFolder(resumed(stored)) as folder:
        with pytest.raises(OSError, match=rf"Read-only file system: '{stored.output_dir}'"):
            folder.claim(resumed(stored))


def test_special_and_oversized_configs_are_refused(stored):
    file = stored.output_dir / "config.json"
    file.write_bytes(b" " * (2 << 20))
    with pytest.raises(OSError, match=rf"expected at most 1,048,576 bytes, got 2,097,152: '{file}'"):
        RunFolder(resumed(stored))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(OSError, match=rf"expected a regular file, .*: '{file}'"):
        RunFolder(resumed(stored))
