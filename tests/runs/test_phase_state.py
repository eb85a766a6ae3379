"""Progress of a phase: its form in a checkpoint, and the selection of the best epoch."""

import pytest
import torch

from oekd_fast.runs.phase_state import PhaseState


def state() -> PhaseState:
    return PhaseState(
        epoch=2, batch=3, order=torch.tensor([2, 0, 1]), seconds=4.5, epoch_seconds=0.5,
        best={"epoch": 1, "score": [50.0, -1.0], "model": {}}, snapshots=[{"w": torch.ones(1)}], history=[{"epoch": 1}],
    )  # fmt: skip


def history(means: dict[int, float | None]) -> list[dict]:
    """Return the lines of epochs with these mean accuracies of two students; None is an epoch without evaluation."""
    return [
        {"epoch": epoch, **({} if mean is None else {"validation": {"accuracy": [mean - 10.0, mean + 10.0]}})}
        for epoch, mean in means.items()
    ]


def test_a_state_is_read_from_the_keys_of_a_checkpoint():
    saved = state().state_dict()
    assert list(saved) == ["epoch", "batch", "order", "seconds", "epoch_seconds", "best", "snapshots", "history"]
    loaded = PhaseState.from_state_dict({"engine": {}, "random": {}, **saved})
    assert torch.equal(loaded.order, saved["order"])
    assert {**loaded.state_dict(), "order": None} == {**saved, "order": None}


def test_a_checkpoint_without_snapshots_has_none():
    saved = state().state_dict()
    del saved["snapshots"]
    assert PhaseState.from_state_dict(saved).snapshots == []


@pytest.mark.parametrize(
    ("means", "stale"),
    [([], 0), ([50.0], 0), ([50.0, 60.0], 0), ([60.0, 50.0], 1), ([50.0, 60.0, 60.0, 59.0], 2), ([60.0] * 4, 3)],
    ids=str,
)
def test_epochs_without_a_higher_accuracy_are_counted(means, stale):
    """The mean over students counts, and an equal accuracy is not higher."""
    assert PhaseState(history=history(dict(enumerate(means, start=1)))).stale_epochs == stale


@pytest.mark.parametrize(
    ("epochs", "means", "stale"),
    [
        (4, {}, 0),
        (5, {5: 50.0}, 0),
        (9, {5: 50.0}, 0),
        (10, {5: 50.0, 10: 50.0}, 5),
        (12, {5: 9.0, 10: 8.0, 12: 7.0}, 7),
    ],
    ids=str,
)
def test_epochs_count_up_to_the_last_evaluation(epochs, means, stale):
    lines = history(dict.fromkeys(range(1, epochs + 1)) | means)
    assert PhaseState(history=lines).stale_epochs == stale


def test_the_first_epoch_with_the_highest_score_is_the_best():
    assert PhaseState().is_best([0.0, -9.0])
    assert state().is_best([50.5, -2.0]) and state().is_best([50.0, -0.5])
    assert not state().is_best([50.0, -1.0]) and not state().is_best([49.0, -0.1])
