"""What `reproduce --status` says of finished, running, stopped and missing runs."""

import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from oekd_fast.config.recipes import recipe_config
from oekd_fast.reproduce import ReproduceOptions, main, show_status
from oekd_fast.reproduction.status import RunStatus, runs_of, statuses, summary_line
from oekd_fast.runs.folder_lock import FolderLock
from oekd_fast.runs.run_folder import RunFolderError

from ..support.summaries import summary_of

DIGITS = "evidence/digits/resnet20"
PHASES = ("ensemble", "baseline_1", "baseline_2")


@pytest.fixture
def config(tmp_path):
    return recipe_config(DIGITS, epochs=2, num_students=2, baseline=True, track_test=True, output_dir=tmp_path / "out")


def begin(run, *epochs):
    """Write the folder of a run with the epochs (phase, seconds, seconds of the evaluation or None without one)."""
    run.run_folder.mkdir(parents=True)
    (run.run_folder / "config.json").write_text(json.dumps(run.as_dict()))
    lines = [
        {"phase": phase, "seconds": steps, **({} if rest is None else {"evaluation_seconds": rest})}
        for phase, steps, rest in epochs
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.run_folder / "metrics.jsonl").write_text(text + '{"phase": "ba')  # the last line was cut


def finish(run):
    summary = summary_of([2.0, 1.0], [1.0, 1.0], epochs=2)
    (run.run_folder / "summary.json").write_text(json.dumps(summary))
    for kind in ("students", "baselines"):
        (run.run_folder / kind).mkdir()
        for index in (1, 2):
            (run.run_folder / kind / f"student_{index}.json").touch()


def test_each_run_has_its_state_and_the_time_that_is_left(config):
    folder = config.output_dir
    runs = runs_of(config, folder, [0, 1, 2, 3])
    assert [run.run_folder.name for run in runs] == ["seed-0", "seed-1", "seed-2", "seed-3"]
    begin(runs[0], *(2 * [("ensemble", 9.0, 1.0)] + 2 * [("baseline_1", 3.0, 1.0)] + 2 * [("baseline_2", 1.0, 1.0)]))
    finish(runs[0])
    begin(runs[1], ("ensemble", 11.0, 1.0), ("ensemble", 11.0, 1.0), ("baseline_1", 3.0, 1.0))
    begin(runs[2], ("ensemble", 29.0, 1.0))
    with FolderLock(runs[1].run_folder):
        found = statuses(runs, folder)
    # Medians of an epoch: 12 s of 10, 10, 12, 12, 30; 4 s; 2 s.
    assert found == [
        RunStatus("seed-0", "finished", 6, 6, 32.0),
        RunStatus("seed-1", "running", 3, 6, 28.0, 4.0 + 2 * 2.0),
        RunStatus("seed-2", "stopped", 1, 6, 30.0, 12.0 + 2 * 4.0 + 2 * 2.0),
        RunStatus("seed-3", "not started", 0, 6, 0.0, 2 * 12.0 + 2 * 4.0 + 2 * 2.0),
    ]
    assert summary_line(found) == "1 of 4 runs finished, 1 running, 1 stopped, 1 not started; 0:01:08 left"
    assert statuses(runs[1:2], folder)[0].state == "stopped"  # the process has ended


def test_phases_that_no_run_has_measured_are_named(config):
    runs = runs_of(config, config.output_dir, [0])
    begin(runs[0], ("ensemble", 3.0, 1.0))
    (found,) = statuses(runs, config.output_dir)
    assert found.seconds_left == 4.0 and found.unmeasured == ("baseline_1", "baseline_2")
    assert summary_line([found]) == (
        "0 of 1 run finished, 1 stopped; 0:00:04 left, "
        "and phases that were not measured in full: baseline_1, baseline_2"
    )


def test_evaluations_after_every_second_epoch_are_counted_apart(config):
    config = replace(config, epochs=5, evaluate_every=2, baseline=False)
    first, second = runs_of(config, config.output_dir, [0, 1])
    begin(first, ("ensemble", 10.0, None))
    (found,) = statuses([first], config.output_dir)
    assert (found.seconds_left, found.unmeasured) == (4 * 10.0, ("ensemble",))
    assert summary_line([found]).endswith("0:00:40 left, and phases that were not measured in full: ensemble")
    begin(second, ("ensemble", 10.0, None), ("ensemble", 10.0, 3.0), ("ensemble", 10.0, None))
    assert statuses([first, second], config.output_dir) == [
        RunStatus("seed-0", "stopped", 1, 5, 10.0, 4 * 10.0 + 3 * 3.0),
        RunStatus("seed-1", "stopped", 3, 5, 33.0, 2 * 10.0 + 2 * 3.0),
    ]


def test_without_an_epoch_the_time_is_not_known(config):
    found = statuses(runs_of(config, config.output_dir, [0]), config.output_dir)
    assert summary_line(found) == (
        "0 of 1 run finished, 1 not started; the time left is not known before an epoch was measured"
    )


def test_ablations_have_families_alone(config):
    runs = runs_of(config, config.output_dir, [0, 1], ["temperature"])
    of_values = runs[2:]
    assert len(of_values) == 2 * (len({run.temperature for run in of_values})) > 4
    assert all(not run.baseline and "ablations/temperature-" in str(run.run_folder) for run in of_values)
    begin(of_values[0], ("ensemble", 1.0, 0.0), ("ensemble", 1.0, 0.0))
    assert statuses(of_values[:1], config.output_dir)[0].epochs == 2


def test_the_command_prints_a_table_within_80_columns_and_writes_nothing(config):
    runs = runs_of(config, config.output_dir, [0, 1])
    begin(runs[0], *((phase, 2.0, 0.0) for phase in PHASES for _ in range(2)))
    finish(runs[0])
    before = sorted(config.output_dir.rglob("*"))
    output = StringIO()
    show_status(ReproduceOptions(recipe=DIGITS, config=config, seeds=2), Console(file=output, width=80))
    text = output.getvalue()
    assert [line.split() for line in text.splitlines() if line.startswith("seed")] == [
        ["seed-0", "finished", "6", "/", "6", "0:00:12", "-"],
        ["seed-1", "not", "started", "0", "/", "6", "0:00:00", "0:00:12"],
    ]  # fmt: skip
    assert text.splitlines()[-1] == "1 of 2 runs finished, 1 not started; 0:00:12 left"
    assert sorted(config.output_dir.rglob("*")) == before


def test_a_run_with_another_config_is_one_line(config, capsys):
    (run,) = runs_of(config, config.output_dir, [0])
    begin(replace(run, weight_decay=0.5))
    with pytest.raises(RunFolderError, match="weight_decay: expected 0.5, got 0.0001"):
        statuses([run], config.output_dir)
    arguments = ["--recipe", DIGITS, "--output-dir", str(config.output_dir), "--seeds", "1", "--status"]
    assert main(arguments) == 1
    assert "epochs: expected 2, got 26" in capsys.readouterr().err.replace("\n", " ")
