"""Reproductions: statistics, finished and interrupted seeds, and the files that are written."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from oekd_fast import reproduce as command
from oekd_fast.common.text import plain
from oekd_fast.config.recipes import RecipeError, get_recipe, recipe_config
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.paper import paper_tables
from oekd_fast.paper.expected import paper_ablation, paper_results
from oekd_fast.reproduce import reproduce
from oekd_fast.reproduction import ablations, seeds
from oekd_fast.reproduction.ablations import SWEEPS, ablate
from oekd_fast.reproduction.markdown import number, render
from oekd_fast.reproduction.results import gather, measured_before, write
from oekd_fast.reproduction.seeds import finished, run, seed_config
from oekd_fast.reproduction.statistics import accuracies
from oekd_fast.reproduction.timing import time_epochs
from oekd_fast.runs.folder_lock import FolderInUseError, FolderLock
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.run_folder import RunFolderError
from oekd_fast.training.engine import Engine

from ..support.hostile_names import HOSTILE_NAMES
from ..support.summaries import FIVE, summary_of

QUIET = Console(quiet=True)
DIGITS, PAPER = "evidence/digits/resnet20", "paper/cifar100/resnet110"


def numbers_for(config: TrainConfig):
    return paper_results(config.dataset, config.model, config.num_students, config.objective, config.widths)


def test_paper_results_exist_for_the_families_of_the_paper_only():
    paper = numbers_for(recipe_config(PAPER))
    assert paper["family"][4] == 46.76 and paper["gain_percent"][4] == pytest.approx(10.64, abs=0.01)
    assert paper["ensemble"] == pytest.approx(78.86)
    assert paper["minutes"]["sequential"] / paper["minutes"]["ensemble"] == pytest.approx(2.49, abs=0.01)
    assert numbers_for(recipe_config("paper/imagenet_1k/resnet50"))["ensemble"] is None
    assert numbers_for(recipe_config(PAPER, num_students=3)) is None
    assert numbers_for(recipe_config(PAPER, widths=(1, 0.9, 0.6, 0.4, 0.2))) is None
    assert numbers_for(recipe_config(PAPER, widths=(1, 0.8, 0.6, 0.4, 0.2), width_divisor=8)) == paper
    assert numbers_for(recipe_config(DIGITS)) is None
    assert numbers_for(replace(recipe_config(PAPER), dataset="uoft-cs/cifar100")) == paper
    for objective in ("dml", "one", "independent", "born_again"):
        assert numbers_for(recipe_config(PAPER, objective=objective)) is None


def results_of(summaries, **overrides) -> dict:
    return gather(get_recipe(PAPER), recipe_config(PAPER, **overrides), dict(enumerate(summaries)), range(3))


def test_markdown_shows_results_beside_those_of_the_paper():
    results = results_of(FIVE, epochs=45, weight_decay=5e-4)
    results["timing"] = {
        "family": 2.0, "alone": [1.0] * 5, "sequential": 5.0, "rounds": 5, "steps": 50, "steps_per_epoch": 352,
        "ratio": {"median": 2.5, "lowest": 2.4, "highest": 2.6}, "device": "cpu",
    }  # fmt: skip
    own = {measure: accuracies(FIVE, measure) for measure in ("selected", "last_epoch", "best_test")}
    values = {value: own for value in paper_ablation("temperature")}
    results["ablations"]["temperature"] = {"table": 9, "values": values, "paper": paper_ablation("temperature")}
    text = render(results)
    for part in (
        "# paper/cifar100/resnet110\n",
        "2 of 3 requested seeds: mean ± sample standard deviation",
        "Changed from the recipe: weight_decay 0.0001 -> 0.0005, epochs 450 -> 45.",
        "sgd at 0.1, times 0.1 at 50 %, 75 %; no warm-up",
        "## Selected epoch: chosen on held-out training images",
        "## Last epoch",
        "## Best test epoch: chosen on the test images as in the paper, which overestimates accuracy",
        "| 5 | 200 | 20.00 | 42.00 ± 2.83 | 47.00 ± 1.41 | +5.00 ± 1.41 | +12.05 ± 4.18 | 42.26 | 46.76 | +4.50 | +10",
        "Ensemble 77.00 ± 1.41 %; paper: 78.86 %.",
        "| ratio | 2.50 [2.40, 2.60] | 2.49 |",
        "(Table 9 of the paper: ResNet110 on CIFAR-100)",
        "| 6 | paper | 66.92 | 66.28 | 65.33 | 55.97 | 43.06 | 69.34 |",
        "Trained on a device.",
    ):
        assert part in text, part
    assert "-" == number(None) and number({"mean": 1.0, "deviation": None}) == "1.00"


def test_markdown_says_which_widths_the_students_have():
    text = render(results_of(FIVE, widths=(1, 0.8, 0.6, 0.4, 0.25), width_divisor=8))
    assert "; widths 1 0.8 0.6 0.4 0.25; channels in multiples of 8; bf16 on CUDA, else fp32" in text
    assert "widths None -> " in text and "width_divisor None -> 8" in text


def test_markdown_of_one_seed_has_no_deviations():
    text = render(results_of([summary_of([2.0, 1.0], [1.0, 1.0])], num_students=2))
    assert "| 1 | 1,000 | 100.00 | 1.00 | 2.00 | +1.00 | +100.00 |\n" in text
    assert "Not available: not every run was evaluated on the test images after every epoch." in text


def test_an_unknown_ensemble_is_a_dash_and_is_not_drawn(tmp_path):
    unknown = {f"{prefix}ensemble_accuracy": None for prefix in ("", "last_epoch_", "best_test_")}
    results = results_of([summary | unknown for summary in FIVE])
    assert render(results).count("\nEnsemble -; paper: 78.86 %.\n") == 3
    write(tmp_path, results)
    assert json.loads((tmp_path / "results.json").read_text())["accuracy"]["last_epoch"]["ensemble"] is None


def test_another_name_of_the_data_set_is_not_listed_as_a_change():
    assert results_of(FIVE)["changed"] == {} == results_of(FIVE, dataset="uoft-cs/cifar100")["changed"]


def test_write_writes_all_three_files(tmp_path):
    write(tmp_path, results_of(FIVE))
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.md", "results.png"}
    assert json.loads((tmp_path / "results.json").read_text())["accuracy"]["selected"]["ensemble"]["mean"] == 77.0
    with Image.open(tmp_path / "results.png") as picture:
        assert picture.width > 1000


# Finished seeds


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    """Two students and two steps per epoch."""
    return recipe_config(
        DIGITS, epochs=2, num_students=2, train_images=60, batch_size=20, baseline=True, track_test=True,
        progress=False, latency="off", output_dir=tmp_path / "out",
    )  # fmt: skip


def write_run(config: TrainConfig, summary: object) -> None:
    config.run_folder.mkdir(parents=True)
    (config.run_folder / "config.json").write_text(json.dumps(config.as_dict()))
    (config.run_folder / "summary.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
    for kind in ("students", "baselines"):
        (config.run_folder / kind).mkdir()
        for index in (1, 2):
            (config.run_folder / kind / f"student_{index}.json").touch()


COMPLETE = summary_of([2.0, 1.0], [1.0, 1.0], epochs=2)


@pytest.mark.parametrize(
    ("summary", "counts"),
    [
        (COMPLETE, True),
        (json.dumps(COMPLETE)[:-40], False),
        ("", False),
        ([], False),
        ({"students": []} | {k: v for k, v in COMPLETE.items() if k != "students"}, False),
        ({k: v for k, v in COMPLETE.items() if k != "ensemble_accuracy"}, False),
        (COMPLETE | {"students": [COMPLETE["students"][0] | {"baseline_accuracy": None}]}, False),
        (COMPLETE | {"ensemble_accuracy": float("nan")}, False),
        (COMPLETE | {"epochs": 1}, False),
    ],
)
def test_only_a_complete_summary_is_finished(config, summary, counts):
    seed = seed_config(config, config.output_dir, 3)
    assert finished(seed) is None
    write_run(seed, summary)
    assert finished(seed) == (COMPLETE if counts else None)
    assert seed.run_folder == config.output_dir / "seed-3" and seed.seed == 3


def test_a_reproduction_that_another_process_writes_is_refused(config):
    config.output_dir.mkdir()
    with FolderLock(config.output_dir), pytest.raises(FolderInUseError, match=str(config.output_dir)):
        reproduce(DIGITS, config, 1, console=QUIET)


def test_a_run_whose_students_were_not_saved_is_not_finished(config):
    seed = seed_config(config, config.output_dir, 3)
    write_run(seed, COMPLETE)
    (seed.run_folder / "baselines" / "student_2.json").unlink()
    assert finished(seed) is None


def test_born_again_runs_need_no_ensemble_of_the_last_epoch(config):
    born_again = recipe_config(DIGITS, epochs=2, objective="born_again", output_dir=config.output_dir)
    unknown = COMPLETE | {"last_epoch_ensemble_accuracy": None}
    for k, (kind, counts) in enumerate(((config, False), (born_again, True))):
        seed = seed_config(kind, config.output_dir, k)
        write_run(seed, unknown)
        assert (finished(seed) is not None) == counts


def test_a_summary_without_its_config_is_not_finished(config):
    seed = seed_config(config, config.output_dir, 0)
    write_run(seed, COMPLETE)
    (seed.run_folder / "config.json").unlink()
    assert finished(seed) is None


def test_a_run_with_another_config_is_rejected_with_the_field(config):
    seed = seed_config(config, config.output_dir, 0)
    write_run(replace(seed, weight_decay=0.5), COMPLETE)
    with pytest.raises(RunFolderError, match=r"seed-0/config.json; weight_decay: expected 0.5, got 0.0001"):
        reproduce(DIGITS, config, 1, console=QUIET)


def test_nothing_is_trained_for_an_unsuitable_recipe(config):
    for recipe, message in ((PAPER, "dataset: expected cifar100"), ("digits", "recipe: 'digits' is unknown")):
        with pytest.raises(RecipeError, match=message):
            reproduce(recipe, config, 1, console=QUIET)
    assert not config.output_dir.exists()


def test_a_signal_during_the_last_steps_of_a_run_stops_the_reproduction(config, monkeypatch):
    def train_to_its_end(config, console, stop):
        stop.request(signal.SIGINT)
        return COMPLETE

    monkeypatch.setattr(seeds, "train", train_to_its_end)
    with pytest.raises(Interrupted, match="seed-0: finished, stopped before the next run"):
        run(seed_config(config, config.output_dir, 0), QUIET)


# Whole reproductions


@pytest.mark.slow  # trains the phases of two seeds, in part several times
def test_a_reproduction_can_be_stopped_continued_and_repeated(config, monkeypatch):
    """The second seed is stopped and continued. Later calls train only a run with a damaged summary."""
    config = replace(config, epochs=1)
    folder, step, done = config.output_dir, Engine.step, []

    def stop(self):
        done.append(1)
        if len(done) == 9:  # a seed has 6 steps, two of each phase
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", stop)
        with pytest.raises(Interrupted):
            reproduce(DIGITS, config, 2, console=QUIET)
    assert json.loads((folder / "results.json").read_text())["seeds"] == [0]
    results = reproduce(DIGITS, config, 2, console=QUIET)
    assert results["seeds"] == [0, 1] and results["accuracy"]["best_test"]["gain_points"][1]["deviation"] is not None
    assert results["accuracy"]["best_test"]["family"][0]["mean"] >= results["accuracy"]["selected"]["family"][0]["mean"]
    assert results["paper"] is None and results["machine"]["torch"]

    with monkeypatch.context() as patch:
        patch.setattr(seeds, "train", None)
        assert reproduce(DIGITS, config, 2, console=QUIET)["accuracy"] == results["accuracy"]
    file = folder / "seed-1" / "summary.json"
    file.write_bytes(file.read_bytes()[:100])
    assert reproduce(DIGITS, config, 2, console=QUIET)["accuracy"] == results["accuracy"]
    with pytest.raises(RunFolderError, match="temperature: expected 2.0, got 3.0"):
        reproduce(DIGITS, replace(config, temperature=3.0), 2, console=QUIET)


@pytest.mark.slow
def test_a_finished_born_again_run_is_not_trained_again(config, monkeypatch):
    """The ensemble of born-again networks exists for their selected epochs only."""
    fields = {"objective": "born_again", "generations": 2, "epochs": 1}
    config = replace(config, **fields)
    results = reproduce(DIGITS, config, 1, console=QUIET)
    measures = results["accuracy"]
    assert measures["selected"]["ensemble"]["mean"] >= 0
    assert measures["last_epoch"]["ensemble"] is None and measures["best_test"]["ensemble"] is None
    assert len(measures["best_test"]["family"]) == 1
    assert (config.output_dir / "results.md").read_text().count("\nEnsemble -.\n") == 2
    monkeypatch.setattr(seeds, "train", None)
    assert reproduce(DIGITS, config, 1, console=QUIET)["accuracy"] == measures


TIMING = {
    "family": 2.0, "alone": [1.0] * 2, "sequential": 2.0, "rounds": 5, "steps": 2, "steps_per_epoch": 2,
    "ratio": {"median": 1.0, "lowest": 1.0, "highest": 1.0}, "device": "cpu",
}  # fmt: skip


@pytest.fixture
def measured(config, monkeypatch):
    """A reproduction of two seeds with timing and an ablation, without training and drawing."""
    config.output_dir.mkdir()
    monkeypatch.setattr("oekd_fast.reproduction.results.write_png", lambda path, draw: None)
    monkeypatch.setattr(seeds, "run", lambda config, console, world: COMPLETE)
    monkeypatch.setattr(ablations, "run", lambda config, console, world: COMPLETE)
    monkeypatch.setattr("oekd_fast.reproduction.timing.time_epochs", lambda config: TIMING)
    return reproduce(DIGITS, config, 2, timing=True, ablations=("alpha",), console=QUIET)


def test_timing_and_ablations_of_earlier_calls_are_kept(config, measured):
    for seeds_asked in (2, 3):
        again = reproduce(DIGITS, config, seeds_asked, console=QUIET)
        assert again["timing"] == TIMING and again["ablations"] == measured["ablations"] != {}
        text = (config.output_dir / "results.md").read_text()
        assert "## Time" in text and "## alpha" in text
        assert ("All other options are as above. Seeds 0, 1.\n" in text) == (seeds_asked == 3)
    both = reproduce(DIGITS, config, 2, ablations=("temperature",), console=QUIET)
    assert both["ablations"].keys() == {"alpha", "temperature"} and both["timing"] == TIMING


def test_timing_and_ablations_are_kept_where_the_data_is_known_to_be_the_same(config, tmp_path):
    """Resuming the first run compares the data in another folder with that of its checkpoints."""
    kept = {"timing": TIMING, "ablations": {"alpha": {"seeds": [0]}}}

    def before(dataset, now, seed=0):
        here = replace(config, dataset=str(dataset), train_images=None)
        (tmp_path / "results.json").write_text(json.dumps(kept | {"config": here.training_fields()}))
        return measured_before(tmp_path, replace(here, dataset=str(now), seed=seed))

    old, new = tmp_path / "old", tmp_path / "new"
    new.mkdir()
    assert before(old, f"{tmp_path}/./old/") == kept
    assert before("cifar10", "uoft-cs/cifar10") == kept
    assert before(old, new) == {}
    checkpoint = tmp_path / "seed-0" / "checkpoints" / "ensemble" / "step-0000000002.pt"
    checkpoint.parent.mkdir(parents=True)
    assert before(old, new) == {}
    checkpoint.touch()
    assert before(old, new) == kept
    assert before(old, tmp_path / "missing") == before("cifar10", new) == before(old, new, seed=1) == {}


def test_results_of_older_versions_without_a_field_are_kept(config, measured):
    file = config.output_dir / "results.json"
    older = json.loads(file.read_text())
    del older["config"]["ce_schedule"], older["ablations"]["alpha"]["seeds"]
    file.write_text(json.dumps(older))
    again = reproduce(DIGITS, config, 3, console=QUIET)
    assert again["timing"] == TIMING and "alpha" in again["ablations"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"config": 3}', "other"])
def test_damaged_results_and_results_of_another_config_are_ignored(config, measured, content):
    file = config.output_dir / "results.json"
    other = content == "other"
    if not other:
        file.write_text(content)
    again = reproduce(DIGITS, replace(config, weight_decay=0.5) if other else config, 2, console=QUIET)
    assert again["timing"] is None and again["ablations"] == {}


def test_ablations_train_only_the_family_and_reuse_the_runs_of_the_config(config, monkeypatch):
    runs = []
    monkeypatch.setattr(ablations, "run", lambda config, console, world: runs.append(config) or COMPLETE)
    for name, sweep in SWEEPS.items():
        found = ablate(name, config, config.output_dir, [0, 1], QUIET)
        assert found["values"].keys() == paper_tables()["ablation_cifar100_resnet110"][name].keys()
        assert all(sweep.fields(value) for value in found["values"])
    assert len({run.run_folder for run in runs}) == 2 * (7 + 5 + 6 - 2)
    places = {run.run_folder.relative_to(config.output_dir): run for run in runs}
    assert places[Path("seed-0")].baseline and places[Path("seed-1")].loss_weights.ce_weight == 0.7
    other = places[Path("ablations/beta_gamma-0.05-0.25/seed-1")]
    assert (other.feature_weight, other.kd_weight, other.baseline, other.seed) == (0.05, 0.25, False, 1)
    assert places[Path("ablations/temperature-6/seed-0")].temperature == 6.0


@pytest.mark.parametrize(
    ("fields", "students"), [({}, 2), ({"objective": "snapshot", "schedule": "cyclic", "snapshots": 1}, 1)]
)
def test_time_epochs_measures_family_and_students(config, fields, students):
    timing = time_epochs(replace(config, **fields), rounds=2, steps=1)
    assert len(timing["alone"]) == students and timing["steps_per_epoch"] == 2 and timing["steps"] == 1
    ratio = timing["ratio"]
    assert 0 < ratio["lowest"] <= ratio["median"] <= ratio["highest"] and timing["family"] > 0
    assert timing["sequential"] == pytest.approx(sum(timing["alone"]))  # the median of two rounds is their mean
    assert not config.output_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "recipe: expected a name, --list-recipes shows all, got none"),
        (("--recipe", "paper/cifar100/resnet101"), "did you mean paper/cifar100/resnet110"),
        (("--recipe", PAPER, "--dataset", "svhn"), "dataset: expected cifar100"),
        (("--recipe", PAPER, "--objective", "okd"), "error: objective: did you mean oekd or kd? expected one of oekd"),
        (("--recipe", PAPER, "--seeds", "0"), "seeds: expected an integer >= 1, got 0"),
    ],
)
def test_the_command_reports_invalid_arguments(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reproduce", *arguments])
    try:
        status = command.main()
    except SystemExit as left:
        status = left.code
    assert status != 0 and message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_names_of_devices_and_processors_are_text_of_the_markdown(name):
    results = results_of(FIVE)
    results |= {"dataset": name, "trained_on": [name], "machine": results["machine"] | {"processor": name}}
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(render(results))
    kinds = {child.type for token in tokens if token.type == "inline" for child in token.children}
    text = "\n".join("".join(child.content for child in token.children) for token in tokens if token.type == "inline")
    assert kinds <= {"text", "text_special", "softbreak"}
    assert f" on {plain(name)}, 2 of 3 requested seeds" in text and f"Trained on {plain(name)}. Written on" in text
