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
from bench.evidence.subset import write_subset
from bench.readme.evidence import outcomes, recipes
from oekd_fast.data import DataError, Split
from oekd_fast.reproduction import seeds


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
    configs = {name: config_of(arm, tmp_path, 30).training_fields() for name, arm in ARMS.items()}
    for name, arm in ARMS.items():
        changed = {**COMMON, **arm.fields}
        assert all(configs[name][key] == value for key, value in changed.items() if not isinstance(value, tuple | str))
        assert arm.hypothesis.endswith(".") and (configs[name]["ramp_epochs"] == 6) == arm.ramped
    assert len({json.dumps(fields, sort_keys=True) for fields in configs.values()}) == len(ARMS)


@pytest.mark.slow
def test_a_run_is_trained_once_and_its_results_are_kept(tmp_path, monkeypatch, capsys):
    arguments = ["--dataset", "digits", "--per-class", "20", "--epochs", "1", "--out", str(tmp_path), "--arms", "wider"]
    assert main([*arguments, "--status"]) == 0
    assert "0 of 1 run finished, 1 not started" in capsys.readouterr().out
    assert main(arguments) == 0
    (result,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert (result["arm"], result["seed"], result["epochs"], result["alone"]) == ("wider", 0, 1, [])
    assert len(result["family"]) == 5 and all(0 <= accuracy <= 100 for accuracy in result["family"])
    monkeypatch.setattr(seeds, "train", None)
    assert main(arguments) == 0
    assert json.loads((tmp_path / "results.json").read_text())["results"] == [result]
    capsys.readouterr()
    shutil.rmtree(tmp_path / "wider-1")  # the result may come from another machine
    assert main([*arguments, "--status"]) == 0
    assert capsys.readouterr().out.startswith("1 of 1 runs are recorded in ")
    assert main(arguments) == 0


def written(tmp_path, *entries):
    """A file of results with these arms, seeds and accuracies of students alone."""
    file = tmp_path / "evidence_cifar100.json"
    machine = {"processor": "P", "threads": 2, "cpu_capability": "AVX2", "torch": "2", "commit": "abc"}
    results.write(
        file,
        [
            {"arm": arm, "seed": seed, "epochs": 30, "family": [30.0 + seed] * 5, "ensemble": 31.0, "alone": alone,
             "machine": machine}
            for arm, seed, alone in entries
        ],
    )  # fmt: skip
    return file


def test_a_result_counts_only_if_its_recipe_is_the_same_today(tmp_path, monkeypatch):
    file = written(tmp_path, ("paper", 0, []), ("wider", 1, []))
    assert results.recorded(file) == {("paper", 0, 30), ("wider", 1, 30)}
    with_alone = ("independent", 0, []), ("independent", 1, [35.0]), ("independent", 2, [35.0] * 5)
    assert results.recorded(written(tmp_path / "alone", *with_alone)) == {("independent", 2, 30)}
    monkeypatch.setitem(ARMS, "paper", replace(ARMS["paper"], ramped=True))
    assert results.recorded(file) == {("wider", 1, 30)}
    monkeypatch.setitem(COMMON, "evaluate_every", 1)  # the last epoch is evaluated in any case
    assert results.recorded(file) == {("wider", 1, 30)}
    monkeypatch.setitem(COMMON, "learning_rate", 0.2)
    assert results.recorded(file) == results.recorded(tmp_path / "none.json") == set()


def test_the_table_has_a_row_for_each_recipe_and_for_its_students_alone(tmp_path):
    written(tmp_path, ("wider", 0, []), ("independent", 0, [35.0, 34.0]), ("independent", 1, [37.0]))
    head, _, *rows, _, caption = outcomes(tmp_path, "evidence_cifar100.json").splitlines()
    assert head == "| recipe | epochs | seeds | student 1 | student 2 | student 3 | student 4 | student 5 | ensemble |"
    assert rows == [
        f"| `independent` | 30 | 2 {'| 30.50 ± 0.71 ' * 5}| 31.00 ± 0.00 |",
        "| `independent`, each alone | 30 | 2 | 36.00 ± 1.41 | 34.00 | - | - | - | - |",
        f"| `wider` | 30 | 1 {'| 30.00 ' * 5}| 31.00 |",
    ]
    assert "validation images" in caption and "P, 2 threads, AVX2, torch 2, commit abc" in caption


def test_the_table_of_recipes_has_what_each_is_expected_to_do(tmp_path):
    written(tmp_path, ("paper", 0, []))
    rows = recipes(tmp_path, "evidence_cifar100.json").splitlines()
    assert len(rows) == len(ARMS) + 4
    (wider,) = (row for row in rows if row.startswith("| `wider` |"))
    assert wider == (
        "| `wider` | `kd_weight` 1.0, `temperature` 3.0, `learn_from` wider, `kd_strengths` 0.3 1.0 1.0 1.0 0.5, "
        f"`kd_schedule` sigmoid | {ARMS['wider'].hypothesis} |"
    )


def test_all_arms_of_a_seed_come_before_the_next_seed(tmp_path):
    runs = planned(["paper", "wider"], [0, 1], 30, tmp_path)
    assert [(run.arm, run.seed) for run in runs] == [("paper", 0), ("wider", 0), ("paper", 1), ("wider", 1)]
    assert len({run.config.run_folder for run in runs}) == 4
