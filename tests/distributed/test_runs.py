"""Runs of several ranks: one set of files, resuming on another number of ranks, stopping together, errors told once."""

import json
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from oekd_fast.common.checked_json import load_checked
from oekd_fast.distributed.world import ALONE
from oekd_fast.runs.checkpoint import load_latest_checkpoint
from oekd_fast.runs.run import train

from ..runs.conftest import small_config
from ..support import rank_runs
from ..support.small_runs import QUIET, assert_same_run, metrics_without_times


@pytest.fixture
def config(arrays, tmp_path):
    return replace(small_config(arrays, tmp_path / "run"), deterministic=True, threads=1)


@pytest.fixture(scope="module")
def on_two_ranks(ranks, arrays, tmp_path_factory):
    """Return a config and the summaries of its run on two ranks, whose folder a test must not change."""
    config = small_config(arrays, tmp_path_factory.mktemp("two_ranks") / "run")
    config = replace(config, deterministic=True, baseline=True, track_test=True, ema_decay=0.5, threads=1)
    return config, ranks.run(2, rank_runs.train, config)


def test_rank_0_writes_one_run_and_all_ranks_return_its_summary(on_two_ranks):
    config, summaries = on_two_ranks
    folder = config.run_folder
    assert summaries[0] == summaries[1] == load_checked((folder / "summary.json").read_bytes())
    lines = metrics_without_times(folder)
    phases = 1 + config.num_students
    assert len(lines) == phases * config.epochs
    assert sorted(p.name for p in (folder / "students").glob("*.safetensors")) == [
        f"student_{j + 1}.safetensors" for j in range(config.num_students)
    ]
    # Accuracies are over all 30 test images, each counted once.
    for line in lines:
        for accuracy in (*line["test"]["accuracy"], line["test"]["ensemble_accuracy"]):
            assert accuracy * 30 / 100 == pytest.approx(round(accuracy * 30 / 100), abs=1e-9)


def test_rank_0_alone_measures_latency_and_the_others_do_not_wait_too_long(ranks, config):
    config = replace(config, epochs=1, latency="on", rank_timeout=40.0)
    (first, measured), (second, nothing) = ranks.run(2, rank_runs.measure, config)
    assert measured == [10.0] and nothing == []
    assert first == second and first["latency"]["machine"] == {"rank": 0}


def test_the_same_run_gives_the_same_bits(ranks, on_two_ranks, tmp_path):
    config, _ = on_two_ranks
    again = replace(config, output_dir=tmp_path / "again")
    ranks.run(2, rank_runs.train, again)
    assert_same_run(config.run_folder, again.run_folder)


def test_evaluation_of_a_run_of_one_process_is_that_of_three_ranks(ranks, config):
    """A finished run that is resumed evaluates its test split again."""
    summary = train(config, QUIET)
    for of_rank in ranks.run(3, rank_runs.train, replace(config, resume=True)):
        assert of_rank["ensemble_accuracy"] == summary["ensemble_accuracy"]
        for ours, theirs in zip(of_rank["students"], summary["students"], strict=True):
            assert ours["accuracy"] == theirs["accuracy"]


def test_a_dry_run_on_two_ranks(ranks, config):
    plans = ranks.run(2, rank_runs.plan, config)
    for plan in plans:
        assert (plan.processes, plan.threads, plan.batch_size) == (2, 1, 20)
        assert [(phase.name, phase.steps_left) for phase in plan.phases] == [("ensemble", 9)]
    assert plans[0].host_bytes == plans[1].host_bytes and plans[0].disk_bytes == plans[1].disk_bytes
    assert not config.run_folder.exists()


def test_all_ranks_end_early_after_the_same_epoch(ranks, config):
    """Weights hardly change, and the running statistics of the norms soon change no prediction."""
    early = replace(config, learning_rate=1e-9, epochs=9, patience=1, evaluate_every=2)
    first, second = (summary["trained_epochs"] for summary in ranks.run(2, rank_runs.train, early))
    assert first == second < 9 and first % 2 == 0


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)], ids=str)
def test_all_ranks_stop_after_the_same_step_and_resume_to_the_same_bits(ranks, config, tmp_path, asked):
    plain = replace(config, output_dir=tmp_path / "plain")
    ranks.run(2, rank_runs.train, plain)
    step = 4
    outcomes = ranks.run(2, rank_runs.stop, config, step, asked)
    (number, message, done), *_ = outcomes
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert number == signal.SIGTERM
    assert message.startswith(f"ensemble: stopped after step {done}")
    # A request is exchanged before a step, so that one that arrives in it is known after the next one.
    assert done in (step, step + 1)
    saved = list((config.run_folder / "checkpoints" / "ensemble").glob("*.pt"))
    assert len(saved) <= 2
    ranks.run(2, rank_runs.train, replace(config, resume=True))
    assert_same_run(plain.run_folder, config.run_folder)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_a_stopped_run_continues_on_another_number_of_ranks(ranks, config, before, after):
    if before == 1:
        number, _, done = rank_runs.stop(ALONE, config, 4, (0,))
    else:
        (number, _, done), *_ = ranks.run(before, rank_runs.stop, config, 4, (0,))
    assert number == signal.SIGTERM
    folder = config.run_folder
    state = load_latest_checkpoint(folder / "checkpoints" / "ensemble").state
    batches = 72 // config.batch_size  # 18 of the 90 images are for validation
    images = int(state["engine"]["metrics"][0])
    assert images == done % batches * config.batch_size  # of all ranks
    resumed = replace(config, resume=True)
    if after == 1:
        train(resumed, QUIET)
    else:
        ranks.run(after, rank_runs.train, resumed)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == config.epochs * batches
    assert torch.isfinite(torch.tensor(last["train"]["loss"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 5}, "seed: expected 0 as on rank 0, got 5"),
        ({"label_smoothing": 0.1}, "label_smoothing: expected 0.0 as on rank 0, got 0.1"),
        ({"train_images": 60}, "train_images: expected None as on rank 0, got 60"),
        ({"model": "resnet32"}, "model: expected "),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_rank_with_another_config_is_named(ranks, config, changes, message):
    outcomes = ranks.outcomes(2, rank_runs.train, config, ({}, changes))
    assert [outcome.kind for outcome in outcomes] == ["OtherRankError", "ValueError"]
    assert outcomes[1].message.startswith(message)
    assert outcomes[0].message.startswith(f"rank 1: {message}")
    assert not config.run_folder.exists()


def test_rank_0_alone_writes_to_the_tracker(ranks, config):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed; see the extra [trackers]")
    config = replace(config, tracker="tensorboard", epochs=1)
    ranks.run(2, rank_runs.train, config)
    assert len(list((config.run_folder / "tensorboard").iterdir())) == 1
    record = load_checked((config.run_folder / "tracker.json").read_bytes())
    assert record == {"tensorboard": {"run": "run", "lines": 1, "epochs": {"ensemble": 1}}}


def test_a_rank_with_another_teacher_is_named(ranks, config, tmp_path):
    files = [tmp_path / f"rank{rank}.py" for rank in range(2)]
    for rank, file in enumerate(files):
        file.write_text(
            "import torch\n"
            "from torch import nn\n"
            "def net():\n"
            f"    torch.manual_seed({rank})\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))\n"
        )
    changes = [{"objective": "kd", "teacher": f"{file}:net"} for file in files]
    outcomes = ranks.outcomes(2, rank_runs.train, config, changes)
    assert re.fullmatch("weights of the teacher: expected '.*' as on rank 0, got '.*'", outcomes[1].message)


def test_a_rank_with_other_data_is_named(ranks, config, arrays, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(arrays, other)
    labels = np.load(other / "train.labels.npy")
    np.save(other / "train.labels.npy", labels[::-1].copy())
    outcomes = ranks.outcomes(2, rank_runs.train, config, ({}, {"dataset": str(other)}))
    assert [outcome.kind for outcome in outcomes] == ["OtherRankError", "ValueError"]
    assert outcomes[1].message.startswith("dataset: expected the data of rank 0; train: ")


@pytest.mark.parametrize(("rank", "where"), [(1, "DeviceData.of"), (0, "RunFolder.claim"), (0, "RunFolder.__enter__")])
def test_an_error_in_the_set_up_of_one_rank_is_told_once(ranks, config, rank, where):
    outcomes = ranks.outcomes(2, rank_runs.fail, config, rank, where)
    kinds = [outcome.kind for outcome in outcomes]
    assert kinds[rank] == "OSError"
    assert kinds[1 - rank] == "OtherRankError"
    assert outcomes[1 - rank].message == f"rank {rank}: [Errno 28] No space left on device: 'somewhere'"


def test_batches_need_two_images_on_each_rank(ranks, config):
    outcomes = ranks.outcomes(2, rank_runs.train, replace(config, batch_size=3))
    assert outcomes[0].kind == "DataError"
    assert outcomes[0].message == "batch_size: training needs batches of at least 4 images on 2 ranks, got 3"
    assert outcomes[1].kind == "OtherRankError"
    assert ranks.run(2, rank_runs.train, replace(config, batch_size=5, epochs=1))[0]["ensemble_accuracy"] >= 0


def test_each_rank_trains_on_its_hardest_images(ranks, config):
    """In the first epochs of smaller images, too. All ranks have the same results."""
    config = replace(config, start_size=0.5, growth=(0.0, 0.4), keep_hardest=0.5, hardest_between=(0.0, 0.9))
    first, second = ranks.run(2, rank_runs.train, config)
    assert first == second
    outcomes = ranks.outcomes(2, rank_runs.train, replace(config, output_dir=None, batch_size=5, keep_hardest=0.3))
    assert outcomes[0].message == (
        "batch_size: training needs batches of at least 4 images on 2 ranks, got 5, of which keep_hardest=0.3 keeps 2"
    )


def test_data_that_are_missing_are_told_once(ranks, config):
    outcomes = ranks.outcomes(2, rank_runs.train, replace(config, dataset="missing"))
    assert [outcome.kind for outcome in outcomes] == ["DataError", "OtherRankError"]
    assert outcomes[0].message.startswith("dataset: ")


def test_fewer_images_than_ranks_need(ranks, config):
    outcomes = ranks.outcomes(3, rank_runs.train, replace(config, train_images=5))
    assert {outcome.kind for outcome in outcomes} == {"DataError", "OtherRankError"}
    assert "at least 6 images on 3 ranks, got" in outcomes[0].message


def test_norms_over_all_ranks_refuse_a_parallel_executor(ranks, config):
    outcomes = ranks.outcomes(2, rank_runs.train, replace(config, norms="global", executor="parallel"))
    assert outcomes[0].message == (
        "executor: expected auto or sequential with norms='global' and several processes, got parallel"
    )
    summaries = ranks.run(2, rank_runs.train, replace(config, norms="global", epochs=1))
    assert summaries[0] == summaries[1]


def test_images_that_stay_on_the_host_give_the_same_bits(ranks, config, tmp_path):
    """Each rank then reads its own part of each batch alone."""
    streamed = replace(config, output_dir=tmp_path / "streamed", data_placement="stream", epochs=1)
    plain = replace(config, epochs=1)
    ranks.run(2, rank_runs.train, plain)
    ranks.run(2, rank_runs.train, streamed)
    for file in sorted((plain.run_folder / "students").glob("*.safetensors")):
        assert file.read_bytes() == (streamed.run_folder / "students" / file.name).read_bytes(), file.name


def test_a_run_folder_that_cannot_be_written(ranks, config, tmp_path):
    (tmp_path / "file").write_text("")
    outcomes = ranks.outcomes(2, rank_runs.train, replace(config, output_dir=tmp_path / "file" / "run"))
    assert outcomes[0].kind == "NotADirectoryError"
    assert outcomes[1].kind == "OtherRankError"
