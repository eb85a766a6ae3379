"""The comparison of recipes: its subset, its arms, and a run that is repeated and resumed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.evidence import results
from bench.evidence.arms import ARMS, COMMON, config_of
from bench.evidence.command import main, planned
from bench.evidence.gains import best_alone, gain, gain_on_test
from bench.evidence.subset import write_subset
from bench.evidence.test_images import error_over_seeds_and_images, packed, unpacked
from bench.readme import pictures
from bench.readme.evidence import gains, on_test, outcomes, recipes, shorter_schedules
from oekd_fast.config.objectives import OBJECTIVE_DEFAULTS
from oekd_fast.config.recipes import recipe_config
from oekd_fast.data import DataError, Split
from oekd_fast.reproduction import seeds
from oekd_fast.runs.console import RunConsole
from oekd_fast.runs.run_folder import RunFolder


def tiny_split(count) -> Split:
    """Images whose pixels are their number in the split, of three classes in turn."""
    numbers = torch.arange(count)
    return Split(numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(count, 1, 2, 2).contiguous(), numbers % 3)


def test_the_subset_has_the_first_images_of_each_class_and_the_next_ones_to_choose_by(tmp_path):
    write_subset(tiny_split(15), tiny_split(6), 2, tmp_path)
    images = {name: np.load(tmp_path / f"{name}.images.npy") for name in ("train", "validation", "test")}
    assert images["train"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert images["validation"][:, 0, 0, 0].tolist() == [6, 7, 8, 9, 10, 11]
    assert images["test"].shape == (6, 2, 2, 1)
    assert np.load(tmp_path / "validation.labels.npy").tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(DataError, match="per_class: expected at most half of the 5 training images of class 0, got 3"):
        write_subset(tiny_split(15), tiny_split(6), 3, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_each_arm_is_a_training_of_its_own_and_says_what_it_should_show(tmp_path):
    teacher = tmp_path / "student_1"
    configs = {
        name: config_of(arm, tmp_path, 30, teacher=teacher if arm.taught else None).training_fields()
        for name, arm in ARMS.items()
    }
    for name, arm in ARMS.items():
        changed = {**COMMON, **arm.fields}
        assert all(configs[name][key] == value for key, value in changed.items() if not isinstance(value, tuple | str))
        assert arm.hypothesis.endswith(".") and (configs[name]["ramp_epochs"] == 6) == arm.ramped
    assert len({json.dumps(fields, sort_keys=True, default=str) for fields in configs.values()}) == len(ARMS)


@pytest.mark.parametrize("epochs", [30, 300])
def test_the_modern_recipes_are_the_one_that_gained_most(tmp_path, epochs):
    """But for the channels in multiples of 8."""
    modern = recipe_config("modern/cifar100/resnet20", epochs=epochs)
    compared = config_of(ARMS["one"], tmp_path, epochs)
    assert modern.loss_weights == compared.loss_weights
    recipe, arm = modern.training_fields(), compared.training_fields()
    unused = {"decay_epochs", *OBJECTIVE_DEFAULTS}  # of other schedules; the weights are compared above
    different = {name for name in arm if recipe[name] != arm[name]} - unused
    assert different == {"dataset", "width_divisor", "evaluate_every"}


def run(tmp_path, *arguments) -> int:
    common = ["--dataset", "digits", "--per-class", "20", "--epochs", "1", "--out", str(tmp_path)]
    return main([*common, *arguments])


def read(tmp_path):
    return json.loads((tmp_path / "results.json").read_text())["results"]


@pytest.mark.slow
def test_a_run_is_trained_once_and_its_results_are_kept(tmp_path, monkeypatch, capsys):
    arguments = tmp_path, "--arms", "wider"
    assert run(*arguments, "--status") == 0
    assert "0 of 1 run finished, 1 not started" in capsys.readouterr().out
    assert run(*arguments) == 0
    (result,) = read(tmp_path)
    assert results.key_of(result) == ("wider", 0, 1, None) and "test" not in result
    assert len(result["accuracy"]) == 5 and all(0 <= accuracy <= 100 for accuracy in result["accuracy"])
    assert 0 <= result["ensemble"] <= 100 and result["minutes"] > 0
    monkeypatch.setattr(seeds, "train", None)
    assert run(*arguments) == 0
    assert read(tmp_path) == [result]
    capsys.readouterr()
    shutil.rmtree(tmp_path / "wider-1")  # the result may come from another machine
    assert run(*arguments, "--status") == 0
    assert capsys.readouterr().out.startswith("1 of 1 runs are recorded in ")
    assert run(*arguments) == 0


@pytest.mark.slow
def test_a_student_alone_is_the_baseline_of_a_run_without_its_other_phases(tmp_path, capsys):
    arguments = tmp_path, "--arms", "independent", "--parts", "4", "--with-test"
    assert run(*arguments, "--status") == 0
    assert "0 of 1 run finished, 1 not started" in capsys.readouterr().out
    assert run(*arguments) == 0
    (result,) = read(tmp_path)
    assert results.key_of(result) == ("independent", 0, 1, 4) and result["ensemble"] is None
    (alone,) = (run for run in planned(["independent"], [0], 1, tmp_path) if run.key.student == 4)
    whole = replace(alone.config, output_dir=tmp_path / "whole", num_students=5)
    summary = seeds.run(whole, RunConsole())
    lines = map(json.loads, RunFolder(whole).metrics_file.read_text().splitlines())
    (of_student,) = (line for line in lines if line["phase"] == "baseline_4")
    assert result["accuracy"] == of_student["validation"]["accuracy"]
    assert result["train"] == of_student["train"]["accuracy"]
    (accuracy,), (correct,), images = (result["test"][name] for name in ("accuracy", "correct", "images"))
    assert accuracy == summary["students"][3]["last_epoch_baseline_accuracy"] and result["test"]["ensemble"] is None
    assert 100 * unpacked(correct, images).mean() == pytest.approx(accuracy, abs=100.5 / images)  # ties are rounded
    capsys.readouterr()
    (tmp_path / "results.json").unlink()
    assert run(*arguments, "--status") == 0
    assert "1 of 1 run finished" not in capsys.readouterr().out  # its result is not recorded
    assert run(*arguments) == 0
    (again,) = read(tmp_path)
    assert again == result  # with the minutes of the run, which was not repeated


@pytest.mark.slow
def test_a_taught_recipe_trains_its_teacher_first_and_takes_it_when_it_is_there(tmp_path, capsys):
    assert run(tmp_path, "--arms", "kd") == 0
    taught, alone = sorted(read(tmp_path), key=lambda entry: entry["student"] is not None)
    assert results.key_of(taught) == ("kd", 0, 1, None) and results.key_of(alone) == ("independent", 0, 1, 1)
    (planned_run,) = planned(["kd"], [0], 1, tmp_path)
    teacher = planned_run.config.teacher
    assert teacher.with_suffix(".json").is_file() and teacher.parent.parent.name == "seed-0-alone-1"
    assert run(tmp_path, "--arms", "kd", "independent", "--parts", "ensemble", "1", "--status") == 0
    assert "2 of 3 runs are recorded" in capsys.readouterr().out


def written(tmp_path, *entries, epochs=30):
    """A file of results with these arms, seeds and students, each with the given accuracies."""
    file = tmp_path / "evidence_cifar100.json"
    machine = {"processor": "P", "threads": 2, "cpu_capability": "AVX2", "torch": "2", "commit": "abc"}
    for arm, seed, student, accuracy in entries:
        ensemble = 31.0 if student is None else None
        key = results.Key(arm, seed, epochs, student)
        results.add(file, {**key._asdict(), "accuracy": accuracy, "ensemble": ensemble, "machine": machine})
    return file


def test_a_result_counts_only_if_its_recipe_is_the_same_today(tmp_path, monkeypatch):
    file = written(tmp_path, ("paper", 0, None, [30.0] * 5), ("wider", 1, None, [31.0] * 5))
    assert results.recorded(file) == {("paper", 0, 30, None), ("wider", 1, 30, None)}
    monkeypatch.setitem(ARMS, "paper", replace(ARMS["paper"], ramped=True))
    assert results.recorded(file) == {("wider", 1, 30, None)}
    monkeypatch.setitem(COMMON, "evaluate_every", 1)  # the last epoch is evaluated in any case
    assert results.recorded(file) == {("wider", 1, 30, None)}
    monkeypatch.setitem(COMMON, "learning_rate", 0.2)
    assert results.recorded(file) == results.recorded(tmp_path / "none.json") == set()


def test_a_result_takes_the_place_of_an_earlier_one_of_the_same_run(tmp_path):
    file = written(tmp_path, ("paper", 0, None, [30.0] * 5), ("paper", 0, 2, [31.0]), ("paper", 0, None, [32.0] * 5))
    assert [(entry["student"], entry["accuracy"][0]) for entry in results.read(file)] == [(2, 31.0), (None, 32.0)]


def test_the_table_has_a_row_for_each_recipe_and_for_its_students_alone(tmp_path):
    written(
        tmp_path, ("wider", 0, None, [30.0] * 5), ("independent", 0, None, [30.0] * 5), ("independent", 0, 1, [35.0]),
        ("independent", 0, 2, [34.0]), ("independent", 1, None, [31.0] * 5), ("independent", 1, 1, [37.0]),
        ("paper", 0, 3, [33.0]),
    )  # fmt: skip
    head, _, *rows, _, caption = outcomes(tmp_path, "evidence_cifar100.json").splitlines()
    assert head == "| recipe | epochs | seeds | student 1 | student 2 | student 3 | student 4 | student 5 | ensemble |"
    assert rows == [
        f"| `independent` | 30 | 2 {'| 30.50 ± 0.71 ' * 5}| 31.00 ± 0.00 |",
        "| `independent`, each alone | 30 | 2 | 36.00 ± 1.41 | 34.00 | - | - | - | - |",
        "| `paper`, each alone | 30 | 1 | - | - | 33.00 | - | - | - |",
        f"| `wider` | 30 | 1 {'| 30.00 ' * 5}| 31.00 |",
    ]
    assert "validation images" in caption and "P, 2 threads, AVX2, torch 2, commit abc" in caption


def test_gains_compare_the_seeds_that_both_have_with_the_best_recipe_alone(tmp_path):
    """Differences of 1, 2 and 3 points have the standard error 1 / sqrt(3) and t = 2 sqrt(3): p = 0.0742."""
    alone = [("independent", seed, 1, [30.0]) for seed in range(3)]
    worse = [("independent_wd1e-4", seed, 1, [29.0]) for seed in range(3)]
    better = [("independent_wd1e-4", 0, 2, [29.0]), ("independent", 0, 2, [28.0])]
    families = [("wider", seed, None, [31.0 + seed, 31.0, 25.0, 25.0, 25.0]) for seed in range(4)]
    file = written(tmp_path, *alone, *worse, *better, *families)
    difference, seeds = gain(results.read(file), "wider", 30, 1)
    assert seeds == 3 and difference.points == 2.0
    assert difference.error == pytest.approx(3**-0.5) and difference.p == pytest.approx(0.0742, abs=1e-4)
    assert best_alone(results.read(file), 30, 2) == ("independent_wd1e-4", {0: 29.0})
    assert gain(results.read(file), "wider", 30, 3) is gain(results.read(file), "paper", 30, 1) is None
    assert gain(results.read(file), "wider", 60, 1) is None
    _, _, *rows, _, _ = gains(tmp_path, "evidence_cifar100.json").splitlines()
    assert rows == [
        "| `wider` | 30 | 3 | +2.00 ± 0.58, p = 0.074 | +2.00 | - | - | - |",
        "| the best recipe alone | 30 | - | `independent` | `independent_wd1e-4` | - | - | - |",
    ]


def test_packed_predictions_are_those_that_were_packed():
    correct = np.random.default_rng(0).random(1003) < 0.4
    assert (unpacked(packed(correct), 1003) == correct).all() and len(packed(correct)) == 168


def test_the_error_of_a_gain_covers_seeds_and_images():
    """Without a spread over seeds it is that of the images alone, sqrt(variance / N), and the other way round."""
    draws = np.random.default_rng(0).random((2, 4000))
    family, alone = draws[0] < 0.5, draws[1] < 0.4
    of_images = 100 * (family.astype(float) - alone).std() / 4000**0.5
    assert error_over_seeds_and_images([family] * 3, [alone] * 3) == pytest.approx(of_images, rel=0.1)
    ones, zeros = np.ones(1000, bool), np.zeros(1000, bool)
    # Gains of 100 and 0 points: their mean over two seeds that are drawn again has the deviation 50 / sqrt(2).
    assert error_over_seeds_and_images([ones, zeros], [zeros, zeros]) == pytest.approx(50 / 2**0.5, rel=0.05)


def test_a_gain_on_test_images_is_over_the_recipe_that_validation_images_choose(tmp_path):
    correct = {share: np.arange(1000) < 1000 * share for share in (0.3, 0.35, 0.4, 0.5)}

    def with_test(arm, seed, student, validation, shares):
        accuracy, images = [100 * share for share in shares], [packed(correct[share]) for share in shares]
        test = {"accuracy": accuracy, "ensemble": None, "images": 1000, "correct": images}
        key = results.Key(arm, seed, 60, student)
        return {**key._asdict(), "accuracy": validation, "ensemble": None, "test": test}

    entries = [
        with_test("independent", 0, 1, [40.0], [0.35]), with_test("independent", 1, 1, [41.0], [0.3]),
        with_test("independent_wd1e-4", 0, 1, [39.0], [0.5]),
        with_test("one", 0, None, [0.0] * 5, [0.4] + [0.3] * 4),
        with_test("one", 1, None, [0.0] * 5, [0.5] + [0.3] * 4),
    ]  # fmt: skip
    found = gain_on_test(entries, "one", 60, 1)
    assert (found.alone, found.seeds) == ("independent", 2)
    assert found.over_seeds.points == pytest.approx((5 + 20) / 2) and found.over_seeds.error == pytest.approx(7.5)
    assert found.error > 0.9 * 7.5 / 2**0.5
    (tmp_path / "results.json").write_text(json.dumps({"results": entries}))
    _, _, family, gained, _, caption = on_test(tmp_path, "results.json").splitlines()
    assert family == "| `one` | 60 | 2 | 45.00 ± 7.07" + " | 30.00 ± 0.00" * 4 + " |"
    assert gained == f"| `one`, gain | 60 | 2 | +12.50 ± 7.50 ({found.error:.2f}), p = 0.34 | - | - | - | - |"
    assert on_test(tmp_path, "none.json") == ""
    assert gain_on_test(entries, "one", 60, 2) is gain_on_test(entries, "paper", 60, 1) is None


def test_shorter_schedules_are_compared_with_longer_ones_of_the_plain_recipe(tmp_path):
    def result(arm, epochs, student, *accuracy):
        return {**results.Key(arm, 0, epochs, student)._asdict(), "accuracy": accuracy, "ensemble": 0.0}

    entries = [
        result("one", 15, None, *[30.0] * 5), result("one", 30, None, *[36.0] * 5),
        result("short_growing", 15, None, *[32.0] * 5), result("short_hardest", 15, None, *[29.0] * 5),
        result("independent", 15, 2, 28.0), result("short_growing", 15, 3, 27.0),
    ]  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps({"results": entries}))
    _, _, *rows, _, caption = shorter_schedules(tmp_path, "results.json").splitlines()
    assert rows == [
        "| `one` | 15 | 100 %" + " | 30.00" * 5 + " | 15.0 |",
        "| `one`, each alone | 15 | - | - | 28.00 | - | - | - | - |",
        "| `short_growing` | 15 | 48 %" + " | 32.00" * 5 + " | 20.0 |",
        "| `short_growing`, each alone | 15 | - | - | - | 27.00 | - | - | - |",
        "| `short_hardest` | 15 | 80 %" + " | 29.00" * 5 + " | - |",
    ]
    assert "epochs of `one`" in shorter_schedules(tmp_path, "results.json") and "interpolated" in caption


def test_the_picture_has_the_means_of_families_and_of_the_students_alone(tmp_path):
    alone = [("independent", seed, j + 1, [20.0 + j + seed]) for seed in range(2) for j in range(5)]
    families = [("one", seed, None, [30.0 + seed] * 5) for seed in range(2)]
    written(tmp_path, *alone, *families, ("paper", 0, None, [25.0] * 5))
    (axes,) = pictures.recipes(tmp_path).axes
    drawn = [list(line.get_ydata()) for line in axes.lines]
    assert [20.5 + j for j in range(5)] in drawn and [30.5] * 5 in drawn and [25.0] * 5 in drawn
    assert "mean of 2 seeds" in axes.get_title() and [31.0, 31.0] in drawn  # the ensemble
    bars = [abs(bar.get_segments()[0][0][1] - bar.get_segments()[0][1][1]) for bar in axes.collections]
    assert bars == pytest.approx([2 * 0.5**0.5] * 10)  # a sample standard deviation up and down


def test_the_picture_of_lengths_has_the_gains_of_recipes_that_were_trained_with_several(tmp_path):
    for epochs, gain_of_one in ((15, -2.0), (60, 1.0)):
        alone = [("independent", seed, j + 1, [20.0 + j + seed]) for seed in range(2) for j in range(5)]
        families = [
            ("one", seed, None, [20.0 + j + seed + gain_of_one + 0.5 * seed for j in range(5)]) for seed in range(2)
        ]
        written(tmp_path, *alone, *families, *([("paper", 0, None, [25.0] * 5)] if epochs == 60 else []), epochs=epochs)
    (axes,) = pictures.lengths(tmp_path).axes
    assert axes.get_title() == "one" and [tick.get_text() for tick in axes.get_xticklabels()] == ["15", "60"]
    drawn = [line for line in axes.lines if list(line.get_ydata()) == [-1.75, 1.25]]
    assert len(drawn) == 5 and list(drawn[2].get_xdata()) == [15, 60]
    bars = [abs(bar.get_segments()[0][0][1] - bar.get_segments()[0][1][1]) for bar in axes.collections]
    assert bars == pytest.approx([2 * 0.25] * 5)  # a standard error of gains of 0 and 0.5 points, up and down


def test_the_table_of_recipes_has_what_each_is_expected_to_do(tmp_path):
    written(tmp_path, ("paper", 0, None, [30.0] * 5))
    rows = recipes(tmp_path, "evidence_cifar100.json").splitlines()
    assert len(rows) == len(ARMS) + 4
    (wider,) = (row for row in rows if row.startswith("| `wider` |"))
    assert wider == (
        "| `wider` | `kd_weight` 1.0, `temperature` 3.0, `learn_from` wider, `kd_strengths` 0.3 1.0 1.0 1.0 0.5, "
        f"`kd_schedule` sigmoid | {ARMS['wider'].hypothesis} |"
    )


def test_all_runs_of_a_seed_come_before_the_next_seed(tmp_path):
    runs = planned(["paper", "independent"], [0, 1], 30, tmp_path)
    of_seed = [("paper", None), ("independent", None), *(("independent", student) for student in range(1, 6))]
    assert [run.key for run in runs] == [(arm, seed, 30, student) for seed in (0, 1) for arm, student in of_seed]
    assert len({run.config.run_folder for run in runs}) == len(runs)
    assert [run.phases for run in runs[:4]] == [("ensemble",), ("ensemble",), ("baseline_1",), ("baseline_2",)]
    assert [run.config.baseline for run in runs[:4]] == [False, False, True, True]
    some = planned(["paper", "independent"], [1], 30, tmp_path, ["5"])
    assert [run.key for run in some] == [("independent", 1, 30, 5)]
