"""Ranks that share the students of a family, against one process and against ranks that each compute all students."""

from dataclasses import replace

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed.grid import check_student_ranks, place_students
from oekd_fast.runs.run import train

from ..runs.conftest import small_config
from ..support import rank_runs, rank_steps
from ..support.small_runs import QUIET

STEPS, ROWS = 3, 12


def test_students_are_placed_by_cost():
    assert place_students([10, 6, 4, 2, 1], 2) == (0, 1, 1, 0, 1)
    assert place_students([1, 1, 1], 3) == (0, 1, 2)
    assert place_students([5.0], 1) == (0,)
    costs = [9, 8, 7, 3, 2, 2]
    work = [sum(c for c, rank in zip(costs, place_students(costs, 3), strict=True) if rank == r) for r in range(3)]
    assert max(work) - min(work) <= 2


@pytest.mark.parametrize(("ranks", "students", "student_ranks"), [(3, 5, 2), (1, 5, 2), (4, 3, 4)])
def test_numbers_that_do_not_fit_are_refused(ranks, students, student_ranks):
    with pytest.raises(ValueError) as error:
        check_student_ranks(ranks, students, student_ranks)
    assert str(error.value) == (
        f"student_ranks: expected a divisor of {ranks}, the number of processes, that is at most {students}, the "
        f"number of students, got {student_ranks}"
    )


def equal_bits(results, expected):
    weights, metrics = expected
    for state, of_rank in results:
        assert state.keys() == weights.keys()
        for name, tensor in weights.items():
            assert torch.equal(state[name], tensor), name
        for name, value in metrics.items():
            assert of_rank[name] == pytest.approx(value, rel=1e-6), name


DETERMINISTIC = {
    "plain": {},
    "moving average": {"ema_decay": 0.9},
    "independent": {"objective": "independent"},
    "gate": {"objective": "one"},
    "others": {"objective": "dml"},
    "teacher": {"objective": "kd", "teacher": "given"},
    "hints": {"objective": "fitnets", "teacher": "given"},
    "fsp": {"objective": "fsp", "feature_weight": 0.05},
    "meal": {"objective": "meal"},
    "lit": {"objective": "lit"},
    "pseudo teacher's gradients": {"base_gradients": "pseudo_teacher"},
    "mean of the students in the base": {"base_gradients": "mean"},
    "base without features": {"base_gradients": "without_features"},
    "frozen base": {"freeze_base": True},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "adam": {"optimizer": "adam"},
    "rmsprop": {"optimizer": "rmsprop", "learning_rate": 1e-3},
}


@pytest.mark.parametrize("options", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_deterministic_steps_have_the_bits_of_one_process(ranks, options):
    fields = {"deterministic": True} | options
    arguments = (fields, STEPS, ROWS, "smooth", False)
    (alone,) = ranks.run(1, rank_steps.train, *arguments)
    equal_bits(ranks.run(2, rank_steps.train, *arguments, 2), alone)


def test_four_ranks_as_two_times_two_have_the_bits_of_two_ranks(ranks):
    arguments = ({"deterministic": True}, STEPS, 13, "smooth", False)
    two, _ = ranks.run(2, rank_steps.train, *arguments)
    equal_bits(ranks.run(4, rank_steps.train, *arguments, 2), two)


@pytest.mark.parametrize(("size", "student_ranks"), [(2, 2), (3, 3), (4, 2)])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}], ids=str)
def test_other_steps_equal_one_process_up_to_rounding(ranks, size, student_ranks, options):
    ((weights, metrics),) = ranks.run(1, rank_steps.train, options, STEPS, ROWS, "plain")
    for state, of_rank in ranks.run(size, rank_steps.train, options, STEPS, ROWS, "plain", True, student_ranks):
        for name, tensor in weights.items():
            assert (state[name] - tensor).norm() <= 1e-13 * tensor.norm().clamp(min=1e-3), name
        for name, value in metrics.items():
            assert of_rank[name] == pytest.approx(value, rel=1e-6), name


def overflow(world, student_ranks):
    """Train two fp16 steps whose loss scale overflows on the ranks of the first student; return what changed."""
    engine = rank_steps.engine_of(world, {"precision": "fp16"}, wide=False, student_ranks=student_ranks)
    before = [p.detach().clone() for p in engine.ensemble.parameters()]
    scale = engine.scaler.state_dict()["scale"]
    if engine._grid is None or 0 in engine._grid.own:
        engine.ensemble.branches[0].classifier.weight.register_hook(lambda grad: grad * torch.inf)
    engine.train_step(*rank_steps.make_batch(8))
    engine.collect()
    same = all(torch.equal(p, old) for p, old in zip(engine.ensemble.parameters(), before, strict=True))
    return same, engine.scaler.state_dict()["scale"] / scale


def test_all_ranks_skip_a_step_that_overflows_on_one(ranks):
    assert ranks.run(1, overflow, 1) == [(True, 0.5)]
    assert ranks.run(2, overflow, 2) == [(True, 0.5)] * 2


@pytest.fixture
def config(arrays, tmp_path) -> TrainConfig:
    return replace(small_config(arrays, tmp_path / "run"), deterministic=True, epochs=2, num_students=3, threads=1)


def test_a_run_with_baselines_gives_the_students_of_one_process(ranks, config, tmp_path):
    """Baselines, which have one student, are computed by all ranks, with statistics of their own images each."""
    config = replace(config, epochs=3, evaluate_every=2)
    alone = replace(config, output_dir=tmp_path / "alone")
    ranks.run(1, rank_runs.train, alone)
    summaries = ranks.run(2, rank_runs.train, replace(config, student_ranks=2))
    assert summaries[0] == summaries[1]
    for file in sorted((alone.run_folder / "students").glob("*.safetensors")):
        assert file.read_bytes() == (config.run_folder / "students" / file.name).read_bytes(), file.name
    again = replace(config, output_dir=tmp_path / "again", student_ranks=2, baseline=True)
    assert ranks.run(2, rank_runs.train, again)[0]["students"][0]["baseline_accuracy"] is not None


def test_a_stopped_run_continues_on_a_process_that_computes_all_students(ranks, config, tmp_path):
    alone = replace(config, output_dir=tmp_path / "alone")
    ranks.run(1, rank_runs.train, alone)
    ranks.run(2, rank_runs.stop, replace(config, student_ranks=2), 2, (1,))
    ranks.run(1, rank_runs.train, replace(config, resume=True))
    for file in sorted((alone.run_folder / "students").glob("*.safetensors")):
        assert file.read_bytes() == (config.run_folder / "students" / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"detach_ensemble": False}, "detach_ensemble=False, whose gradients go through all students"),
        ({"objective": "codistillation", "codistillation_delay": 2}, "codistillation_delay, whose copies"),
        ({"norms": "global"}, "norms='global'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_trainings_that_need_all_students_on_a_rank_are_refused(ranks, config, fields, reason):
    outcomes = ranks.outcomes(2, rank_runs.train, replace(config, student_ranks=2, **fields))
    assert outcomes[0].message.startswith(f"student_ranks: expected 1 with {reason}")
    assert outcomes[1].kind == "OtherRankError"


def test_a_process_alone_cannot_share_students(config):
    with pytest.raises(ValueError, match="student_ranks: expected a divisor of 1, the number of processes"):
        train(replace(config, student_ranks=2), QUIET)
