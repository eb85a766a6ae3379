"""Training on the hardest images of a batch: which they are, and that a step is one on these images alone."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation, DeviceBatches, Split
from oekd_fast.distributed.world import World
from oekd_fast.training.hardest import hardest_rows, kept_part

from ..support.engines import make_batch, make_engine, make_teacher, network_input

KEEPING = {"num_students": 3, "warmup_epochs": 0, "epochs": 1, "keep_hardest": 0.5, "hardest_between": (0.0, 1.0)}


def batches_of(images, labels):
    return DeviceBatches(Split(images, labels), "cpu")


def state_of(engine):
    return {name: tensor.clone() for name, tensor in engine.ensemble.state_dict().items()}


@pytest.mark.parametrize("mixed", [False, True])
def test_the_images_with_the_largest_cross_entropy_of_the_last_student_are_selected(mixed):
    engine, (pixels, labels) = make_engine(), make_batch(16)
    engine.train_step(pixels, labels)  # running statistics are no longer those of the start
    target = torch.rand(16, 10).softmax(dim=1) if mixed else labels
    before = state_of(engine)
    rows = hardest_rows(engine.ensemble, network_input(pixels), target, 6)
    engine.ensemble.eval()
    logits = engine.ensemble(network_input(pixels)).logits[-1]
    losses = cross_entropy(logits, target, reduction="none")
    assert rows.tolist() == sorted(losses.argsort(descending=True)[:6].tolist())
    assert all(torch.equal(before[name], tensor) for name, tensor in engine.ensemble.state_dict().items())


@pytest.mark.parametrize("fields", [{}, {"micro_batches": 2}, {"objective": "one"}, {"ema_decay": 0.9}, {"mixup": 0.4}])
def test_a_step_is_that_on_the_selected_images_alone(fields):
    pixels, labels = make_batch(16)
    keeping = make_engine(TrainConfig(**KEEPING, **fields))
    keeping.begin_epoch(batches_of(pixels, labels), torch.arange(16), 16)
    given = make_engine(TrainConfig(**KEEPING | {"keep_hardest": None}, **fields))
    # The selection is taken from a batch as `given` would draw it.
    given.begin_epoch(batches_of(pixels, labels), torch.arange(16), 16)
    with given._source.next_batch() as (own_pixels, target):
        rows = hardest_rows(given.ensemble, given._preprocessing.normalised(own_pixels), target, 8)
        given._train_on(own_pixels[rows], target[rows], kept_part(16, 0.5, World()))
    keeping.step()
    expected = state_of(given)
    assert all(torch.equal(expected[name], tensor) for name, tensor in keeping.ensemble.state_dict().items())
    assert keeping.metrics.read() == given.metrics.read() and keeping.metrics.read().images == 8


def test_a_student_alone_selects_its_own_images():
    pixels, labels = make_batch(16)
    engine = make_engine(TrainConfig(**KEEPING), members=(1,))
    logits = engine.ensemble.eval()(network_input(pixels)).logits[0]
    losses = cross_entropy(logits, labels, reduction="none")
    rows = hardest_rows(engine.ensemble, network_input(pixels), labels, 4)
    assert set(rows.tolist()) == set(losses.argsort(descending=True)[:4].tolist())


def test_whole_batches_are_trained_on_outside_the_span():
    pixels, labels = make_batch(16)
    config = TrainConfig(**KEEPING | {"epochs": 10, "hardest_between": (0.5, 0.9)})
    engine, images = make_engine(config), []
    for epoch in (0, 4, 5, 8, 9):
        engine.metrics.reset()
        engine.begin_epoch(batches_of(pixels, labels), torch.arange(16), 16, epoch=epoch)
        engine.step()
        images.append(engine.metrics.read().images)
    assert images == [16, 16, 8, 8, 16]


def test_a_teacher_and_labels_follow_the_selected_images():
    pixels, labels = make_batch(16)
    config = TrainConfig(**KEEPING, objective="kd", teacher="given")
    engine = make_engine(config, teacher=make_teacher())
    engine.begin_epoch(batches_of(pixels, labels), torch.arange(16), 16)
    engine.step()
    assert engine.metrics.read().images == 8 and engine.metrics.read().first_bad_step is None


def test_the_loss_reports_labels_that_are_out_of_range():
    pixels, labels = make_batch(16)
    labels[:] = 10
    engine = make_engine(TrainConfig(**KEEPING))
    engine.begin_epoch(batches_of(pixels, labels), torch.arange(16), 16)
    with pytest.raises(ValueError, match=r"^target: expected labels in \[0, 10\) or ignore_index -100, got 10"):
        engine.step()


@pytest.mark.parametrize(("rows", "kept", "size"), [(128, 0.5, 1), (128, 0.5, 3), (8, 0.9, 5), (7, 0.3, 2)])
def test_each_rank_keeps_a_share_of_its_own_images(rows, kept, size):
    parts = [kept_part(rows, kept, World(rank=rank, size=size)) for rank in range(size)]
    own = [World(rank=rank, size=size).part(rows).count for rank in range(size)]
    assert [part.count for part in parts] == [round(kept * count) for count in own]
    assert {part.of for part in parts} == {sum(part.count for part in parts)}
    assert [part.first for part in parts] == [sum(part.count for part in parts[:rank]) for rank in range(size)]
    assert sum(part.share for part in parts) == pytest.approx(1.0)


def test_flips_and_crops_come_before_the_selection():
    pixels, labels = make_batch(16)
    augmentation = Augmentation(pad=2, flip=True)
    drawn = []
    for fields in ({}, {"keep_hardest": None}):
        engine = make_engine(TrainConfig(**KEEPING | fields), augmentation=augmentation)
        engine.begin_epoch(batches_of(pixels, labels), torch.arange(16), 16)
        engine.step()
        drawn.append(engine.generators["augmentation"].get_state())
    assert torch.equal(*drawn)
