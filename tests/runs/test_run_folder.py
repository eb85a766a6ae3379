"""The run folder: new, resumed, in use by another run, damaged."""

import pytest

from oekd_fast.common.checked_json import load_checked
from oekd_fast.config.train_config import TrainConfig
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
