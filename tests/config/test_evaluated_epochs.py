"""Epochs that end with an evaluation: every n-th one, and the last one."""

import pytest

from oekd_fast.config.evaluated_epochs import EvaluatedEpochs


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [(4, 1, [1, 2, 3, 4]), (10, 4, [4, 8, 10]), (10, 5, [5, 10]), (3, 9, [3]), (1, 1, [1])],
)
def test_every_nth_epoch_and_the_last_one(epochs, every, expected):
    evaluated = EvaluatedEpochs(epochs, every)
    assert [epoch for epoch in range(1, epochs + 1) if epoch in evaluated] == expected
    for done in range(epochs + 1):
        assert evaluated.after(done) == sum(epoch > done for epoch in expected)
