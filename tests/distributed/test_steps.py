"""Training steps of several ranks against those of one process."""

from functools import cache
from unittest.mock import patch

import pytest
import torch

from bench.model.scale_out import Cluster, Family, plan_step
from oekd_fast.distributed.grid import StudentGrid
from oekd_fast.distributed.world import ALONE
from oekd_fast.models import get_architecture

from ..support import rank_steps
from ..support.engines import make_batch

STEPS = 4
# Float64 leaves rounding alone: sums over the batch are made in another order.
EXACT = 1e-13


@cache
def alone(fields, rows, network="smooth"):
    return rank_steps.train(ALONE, dict(fields), STEPS, rows, network)


def check_close(results, expected, limit=EXACT):
    """Compare the weights and metrics of all ranks with those of one process, relative to each tensor's norm."""
    weights, metrics = expected
    for state, of_rank in results:
        assert state.keys() == weights.keys()
        for name, tensor in weights.items():
            error = (state[name].double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-3)
            assert error <= limit, f"{name}: {error:.3g}"
        for name, value in metrics.items():
            assert of_rank[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize(("rows", "size"), [(64, 2), (63, 2), (64, 3), (63, 3)])
@pytest.mark.parametrize("network", ["plain", "smooth"])
def test_ranks_equal_one_process(ranks, network, rows, size):
    """Without norms, or with statistics of the whole batch; 63 rows divide by neither 2 nor 5."""
    fields = {} if network == "plain" else {"norms": "global"}
    results = ranks.run(size, rank_steps.train, fields, STEPS, rows, network)
    check_close(results, alone(tuple(fields.items()), rows, network))


OBJECTIVES = {
    "kd": {"objective": "kd", "teacher": "student_1"},
    "codistillation": {"objective": "codistillation", "codistillation_delay": 2},
    "dml": {"objective": "dml"},
    "fitnets": {"objective": "fitnets", "teacher": "student_1"},
    "fsp": {"objective": "fsp"},
    "meal": {"objective": "meal"},
    "lit": {"objective": "lit"},
    "one": {"objective": "one"},
    "independent": {"objective": "independent"},
    "attached": {"detach_ensemble": False},
    "pseudo teacher's gradients": {"base_gradients": "pseudo_teacher"},
    "mean of the students in the base": {"base_gradients": "mean"},
    "base without features": {"base_gradients": "without_features"},
    "moving average": {"ema_decay": 0.9},
    "clipped": {"clip_norm": 0.5},
    "frozen base": {"freeze_base": True},
    "class weights": {"class_weights": "balanced"},
    "without features": {"feature_weight": 0.0},
    "adam": {"optimizer": "adam"},
    "rmsprop": {"optimizer": "rmsprop", "learning_rate": 1e-3},
    "smoothing, no channels_last": {"label_smoothing": 0.1, "channels_last": False},
}


@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=OBJECTIVES)
def test_every_kind_of_training_equals_one_process(ranks, options):
    fields = options | {"norms": "global"}
    # Adam and RMSprop divide by the root of a mean square, which enlarges rounding where a gradient is nearly 0.
    limit = 1e-9 if "optimizer" in options else EXACT
    check_close(ranks.run(2, rank_steps.train, fields, STEPS, 15), alone(tuple(fields.items()), 15), limit)


def test_ranks_mix_images_as_one_process(ranks):
    """The part of the second rank begins at an even row, so that no pair of images is on two ranks."""
    fields = {"mixup": 0.5, "cutmix": 1.0, "micro_batches": 2}
    check_close(ranks.run(2, rank_steps.train, fields, STEPS, 16, "plain"), alone(tuple(fields.items()), 16, "plain"))


@pytest.mark.parametrize("student_ranks", [1, 2])
def test_ranks_compute_their_rows_in_parts(ranks, student_ranks):
    """Without student ranks, the parts of 15 images on two ranks are 2, 2, 3 and 2, 3, 3."""
    fields = {"clip_norm": 0.5}
    parts = ranks.run(2, rank_steps.train, fields | {"micro_batches": 3}, STEPS, 15, "plain", True, student_ranks)
    check_close(parts, alone(tuple(fields.items()), 15, "plain"))


@pytest.mark.parametrize("size", [2, 3])
def test_local_norms_have_the_bits_of_one_process_that_computes_all_parts(ranks, size):
    """With three ranks gloo adds in another order than one process does."""
    rows = 12
    (expected,) = ranks.run(1, rank_steps.parts_in_one_process, {}, 4, rows, size)
    for state, _ in ranks.run(size, rank_steps.train, {}, 4, rows, "smooth", False):
        for name, tensor in expected.items():
            if size == 2:
                assert torch.equal(state[name], tensor), name
            else:
                torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-6)


def test_ranks_equal_one_ddp_a_student(ranks):
    results = ranks.run(2, rank_steps.train, {}, STEPS, 16, "plain")
    for (state, _), theirs in zip(results, ranks.run(2, rank_steps.train_with_ddp, {}, STEPS, 16), strict=True):
        for name, tensor in theirs.items():
            assert (state[name] - tensor).norm() <= EXACT * tensor.norm().clamp(min=1e-3), name


def sent_elements(world):
    engine = rank_steps.engine_of(world, {}, network=get_architecture("resnet20"), wide=False)
    engine.train_step(*make_batch(4))
    return engine.buckets.elements


def test_a_rank_sends_what_the_cost_model_says(ranks):
    on_two = plan_step(Family.of("resnet20", 3, 10, 8), Cluster(2, link=1.0, latency=0.0, speed=1.0), batch=4)
    assert [4 * elements for elements in ranks.run(2, sent_elements)] == [on_two.bytes] * 2


def exchanged_by_student_ranks(world):
    """Return the bytes of sums of gradients, of other sums, and of copies in a step of two student ranks."""
    engine = rank_steps.engine_of(world, {}, network=get_architecture("resnet20"), wide=False, student_ranks=2)
    exchanged = {"add_up": 0, "send_from": 0}

    def noting(name):
        real = getattr(StudentGrid, name)

        def noted(grid, *arguments):
            exchanged[name] += sum(t.numel() * t.element_size() for t in arguments if isinstance(t, torch.Tensor))
            return real(grid, *arguments)

        return patch.object(StudentGrid, name, noted)

    with noting("add_up"), noting("send_from"):
        engine.train_step(*make_batch(8))
    return 4 * engine.buckets.elements, exchanged["add_up"], exchanged["send_from"]


def test_student_ranks_exchange_what_the_cost_model_says(ranks):
    on_four = plan_step(Family.of("resnet20", 3, 10, 8), Cluster(4, link=1.0, latency=0.0, speed=1.0), 8, 2)
    for rank, found in enumerate(ranks.run(4, exchanged_by_student_ranks)):
        moved = {transfer.what: transfer.bytes for transfer in on_four.ranks[rank % 2].transfers}
        logits, maps, base = (moved.pop(what) for what in ("logits", "maps", "base"))
        # A ring of W ranks sends 2 (W - 1) / W of the bytes of a sum: all of them with two ranks, 3/2 with four.
        assert found == (sum(moved.values()) + base / 1.5, logits, maps)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("options", [{"clip_norm": 0.5, "ema_decay": 0.9}, {"executor": "parallel"}], ids=str)
def test_all_ranks_hold_the_same_bits_after_each_step(ranks, options, precision):
    fields = {"precision": precision} | options
    (first, sent), *others = ranks.run(3, rank_steps.digests, fields, 3, 13)
    assert len(set(first)) == 3  # the weights change
    assert sent > 10_000
    assert all(found == first for found, _ in others)
