"""The comparison of recipes: its subset, its arms, and a run that is repeated and resumed."""

import json

import numpy as np
import pytest
import torch

from bench.evidence.arms import ARMS, COMMON, config_of
from bench.evidence.command import main, planned
from bench.evidence.subset import write_subset
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
    assert main([*arguments, "--status"]) == 0
    assert "1 of 1 run finished" in capsys.readouterr().out


def test_all_arms_of_a_seed_come_before_the_next_seed(tmp_path):
    runs = planned(["paper", "wider"], [0, 1], 30, tmp_path)
    assert [(run.arm, run.seed) for run in runs] == [("paper", 0), ("wider", 0), ("paper", 1), ("wider", 1)]
    assert len({run.config.run_folder for run in runs}) == 4
