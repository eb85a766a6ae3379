"""What each epoch trains on: the size of images, and the share of a batch."""

import pytest

from oekd_fast.config.epoch_work import EpochWork, epoch_costs, epoch_work
from oekd_fast.config.train_config import TrainConfig

WHOLE = EpochWork(1.0, 1.0)


def works(epochs, **fields):
    config = TrainConfig(epochs=epochs, **fields)
    return [epoch_work(config, epoch, epochs) for epoch in range(epochs)]


def test_by_default_every_epoch_trains_on_whole_batches_of_whole_images():
    assert works(7) == [WHOLE] * 7


def test_images_grow_between_two_shares_of_the_training():
    sides = [work.side for work in works(10, start_size=0.5)]
    assert sides == pytest.approx([0.5] * 6 + [2 / 3, 5 / 6, 1.0, 1.0])
    assert [work.side for work in works(4, start_size=0.25, growth=(0.0, 1.0))] == [0.25, 0.4375, 0.625, 0.8125]


def test_the_hardest_images_are_kept_between_two_shares_of_the_training():
    assert [work.kept for work in works(10, keep_hardest=0.3)] == [1.0] * 5 + [0.3] * 4 + [1.0]
    assert [work.kept for work in works(2, keep_hardest=0.3, hardest_between=(0, 1))] == [0.3, 0.3]


def test_the_cost_of_an_epoch():
    config = TrainConfig(epochs=4, start_size=0.5, growth=(0.25, 0.5), keep_hardest=0.5, hardest_between=(0.0, 0.75))
    assert epoch_costs(config, 4, selection=0.1) == pytest.approx((0.25 * 0.6, 0.25 * 0.6, 0.6, 1.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start_size": 1.0}, r"start_size: expected a number in \(0, 1\), got 1.0"),
        ({"keep_hardest": 0.0}, r"keep_hardest: expected a number in \(0, 1\), got 0.0"),
        ({"growth": (0.8, 0.5)}, r"growth: expected two ascending shares of the training in \[0, 1\], got \(0.8, "),
        ({"hardest_between": (0.5,)}, r"hardest_between: expected two ascending shares of the training in \[0, 1\]"),
        (
            {"start_size": 0.5, "objective": "fitnets", "teacher": "teacher.pt2"},
            "start_size: expected none with the teacher of objective='fitnets', whose maps have the size of whole "
            "images, got 0.5",
        ),
        (
            {"keep_hardest": 0.5, "student_ranks": 2},
            "keep_hardest: expected none with student_ranks=2, since the last student selects the images, got 0.5",
        ),
    ],
)
def test_values_that_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TrainConfig(**fields)


def test_a_teacher_of_logits_alone_goes_with_small_images():
    assert TrainConfig(start_size=0.5, objective="kd", teacher="teacher.pt2").start_size == 0.5
