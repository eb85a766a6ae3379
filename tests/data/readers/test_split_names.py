"""Names of splits: usual names in any case, doubled roles, and the note on what is read as what."""

import pytest

from oekd_fast.data import DataError
from oekd_fast.data.readers.split_names import choose_splits, split_role, split_roles


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("train", ["train", "Train", "TRAINING", "training_set", "train-data", "Train Images", "trainset"]),
        ("validation", ["val", "Valid", "validation", "DEV", "eval", "Evaluation", "development", "val_split"]),
        ("test", ["test", "Testing", "TEST", "test_set", "test.images"]),
        (None, ["", "cat", "trainee", "train1", "train_station", "contest", "tests", "set", "extra", "x_train"]),
    ],
)
def test_the_role_of_a_name_does_not_depend_on_case_and_separators(role, names):
    assert {name: split_role(name) for name in names} == dict.fromkeys(names, role)


def test_a_beginning_that_all_names_share_is_left_out_of_account():
    names = ["seg_pred", "seg_test", "seg_train"]
    assert split_roles(names) == {"seg_pred": None, "seg_test": "test", "seg_train": "train"}
    assert set(split_roles(["train_station", "train_wagon"]).values()) == {None}
    assert set(split_roles(["my_train"]).values()) == {None}


@pytest.mark.parametrize(
    ("names", "stored", "note"),
    [
        (["train"], {"train": "train"}, None),
        (["test", "train", "validation"], {"train": "train", "validation": "validation", "test": "test"}, None),
        (
            ["Training", "Testing"],
            {"train": "Training", "test": "Testing"},
            "x: splits: train from 'Training', test from 'Testing'",
        ),
        (["train", "dev"], {"train": "train", "test": "dev"}, "x: splits: train from 'train', test from 'dev'"),
        (
            ["train", "eval", "test", "extra"],
            {"train": "train", "validation": "eval", "test": "test"},
            "x: splits: train from 'train', validation from 'eval', test from 'test'; ignored: 'extra'",
        ),
    ],
)
def test_the_choice_of_splits_and_its_note(names, stored, note):
    choice = choose_splits("x", names)
    assert choice.stored == stored and choice.note("x") == note


def test_a_skipped_role_is_ignored_and_noted():
    choice = choose_splits("x", ["train", "validation", "test"], skip=("test",))
    assert choice.stored == {"train": "train", "test": "validation"}
    assert choice.note("x") == "x: splits: train from 'train', test from 'validation'; ignored: 'test'"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train", "val", "dev"], "x: expected one validation split, got 'val', 'dev'; rename or remove all but one"),
        (["Train", "train"], "x: expected one train split, got 'Train', 'train'; rename or remove all but one"),
        (["test"], "x: expected a split 'train', got 'test'"),
        ([], "x: expected a split 'train', got none"),
    ],
)
def test_doubled_and_missing_splits_are_errors(names, message):
    with pytest.raises(DataError) as caught:
        choose_splits("x", names)
    assert str(caught.value) == message
