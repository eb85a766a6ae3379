"""Set-up of ranks: devices, threads, who loads first, versions, and which images a rank reads."""

import os

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed import rendezvous
from oekd_fast.distributed.rendezvous import joined
from oekd_fast.distributed.world import ALONE, World
from oekd_fast.runs import ranks as set_up
from oekd_fast.runs.ranks import device_of_rank, device_type, first_on_each_machine, threads_of_rank
from oekd_fast.training.data_parallel import begin_part

VERSION = set_up.__version__


@pytest.fixture
def gpus(monkeypatch):
    """Let the process have two GPUs; nothing runs on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(set_up, "choose_device", torch.device)


def test_each_rank_of_a_machine_has_a_gpu_of_its_own(gpus):
    world = World(rank=3, size=4, local_rank=1, local_size=2)
    assert device_type("auto") == "cuda"
    assert device_of_rank("auto", world) == device_of_rank("cuda", world) == torch.device("cuda:1")
    assert device_of_rank("cpu", world) == torch.device("cpu")
    assert device_of_rank("cuda:1", ALONE) == torch.device("cuda:1")


def test_a_gpu_for_several_ranks_is_refused(gpus):
    with pytest.raises(ValueError, match=r"^device: expected auto, cuda or cpu with several processes, got 'cuda:1'$"):
        device_of_rank("cuda:1", World(0, 2, 0, 2))
    message = r"^device: expected a GPU for each of the 3 processes on this machine, got 2 GPUs$"
    with pytest.raises(ValueError, match=message):
        device_of_rank("auto", World(2, 3, 2, 3))


@pytest.mark.parametrize(
    ("missing", "device", "message"),
    [
        ("is_gloo_available", "cpu", "WORLD_SIZE: expected 1, because this PyTorch was built without gloo"),
        ("is_nccl_available", "cuda", "WORLD_SIZE: expected 1 on CUDA devices, because this PyTorch was built without"),
    ],
)
def test_a_pytorch_without_the_backend_is_refused(monkeypatch, missing, device, message):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rendezvous.dist, missing, lambda: False)
    with pytest.raises(ValueError, match=f"^{message}"), joined(device, timeout=1.0, join_timeout=1.0):
        pass


def test_ranks_share_the_cores_of_a_machine(threads):
    threads(2)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with threads_of_rank(None, ALONE):
        assert torch.get_num_threads() == 2
    with threads_of_rank(None, World(0, 4, 0, 2)):
        assert torch.get_num_threads() == max(1, cores // 2)
    with threads_of_rank(1, World(0, 4, 0, 2)):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def load_in_turn(world, file):
    def load():
        present = file.exists()
        file.write_text("downloaded")
        return present

    return first_on_each_machine(world, load)


def test_one_rank_of_a_machine_loads_before_the_others(ranks, tmp_path):
    assert ranks.run(3, load_in_turn, tmp_path / "file") == [False, True, True]
    assert load_in_turn(ALONE, tmp_path / "other") is False


def check_versions(world):
    set_up.__version__ = "0.0.1" if world.rank == 1 else set_up.__version__
    try:
        set_up.check_same_run(world, TrainConfig(), None)
    finally:
        set_up.__version__ = VERSION


def test_ranks_of_different_versions_are_named(ranks):
    outcomes = ranks.outcomes(2, check_versions)
    expected = f"version of oekd_fast: expected '{VERSION}' as on rank 0, got '0.0.1'"
    assert [outcome.message for outcome in outcomes] == [f"rank 1: {expected}", expected]


class Rows:
    """Batches that only record what they are asked for."""

    def begin(self, order, batch_size, first=0):
        self.asked = order.view(-1, batch_size).tolist()


def test_ranks_read_parts_of_each_batch_that_cover_it_once():
    order, size = torch.randperm(23), 7
    asked = []
    for rank in range(3):
        rows = Rows()
        part = begin_part(rows, order, size, 0, World(rank, 3))
        assert part == World(rank, 3).part(size)
        asked.append(rows.asked)
    joint = [sum(parts, []) for parts in zip(*asked, strict=True)]
    assert joint == order[:21].view(3, 7).tolist()
