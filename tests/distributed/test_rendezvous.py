"""How ranks find each other: the environment of a launcher, and a new store after a restart."""

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from oekd_fast.distributed.rendezvous import Launch, is_quiet_rank, joined, rank_prefix
from oekd_fast.distributed.rendezvous import _fresh_store as fresh_store
from oekd_fast.distributed.world import ALONE, LostRankError, World

COMPLETE = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def test_a_process_alone_needs_no_launcher():
    assert Launch.from_environment({}) is None
    assert Launch.from_environment({"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert rank_prefix({}) == rank_prefix({"WORLD_SIZE": "1", "RANK": "0"}) == ""
    assert not is_quiet_rank({})


def test_the_variables_of_torchrun_are_read():
    launch = Launch.from_environment(
        COMPLETE
        | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
        | {"TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    )
    assert launch == Launch(World(3, 4, 1, 2, restarts=2), "node0", 29500, agent_store=True)
    assert rank_prefix(COMPLETE) == "rank 3: "
    assert is_quiet_rank(COMPLETE)
    assert not is_quiet_rank(COMPLETE | {"RANK": "0"})


def test_other_launchers_need_not_set_local_ranks():
    assert Launch.from_environment(COMPLETE) == Launch(World(3, 4, 0, 1), "node0", 29500, agent_store=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": None}, "RANK: expected an integer, got none, although WORLD_SIZE is set"),
        ({"RANK": "4"}, "RANK: expected an integer >= 0 and < 4, got 4"),
        ({"RANK": "first"}, "RANK: expected an integer >= 0 and < 4, got 'first'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: expected an integer >= 1, got 0"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR: expected the host of rank 0, got none"),
        ({"MASTER_PORT": None}, "MASTER_PORT: expected an integer, got none, although WORLD_SIZE is set"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT: expected an integer >= 1 and < 65536, got 70000"),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK: expected an integer >= 0 and < 2, got 2"),
    ],
)
def test_an_incomplete_environment_is_refused(changes, message):
    environment = {name: value for name, value in (COMPLETE | changes).items() if value is not None}
    with pytest.raises(ValueError) as error:
        Launch.from_environment(environment)
    assert str(error.value) == message


def test_tasks_of_slurm_without_a_launcher_are_refused():
    with pytest.raises(ValueError, match=r"^WORLD_SIZE: expected the number of processes, got none, although SLURM"):
        Launch.from_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"})
    # One task of a step in a larger allocation, as `srun -n 1` starts it.
    one = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}
    assert Launch.from_environment(one) is None


def test_a_new_store_is_found_among_keys_of_ranks_that_were_restarted():
    agent = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    stale = dist.PrefixStore("oekd_fast", agent)
    # What an earlier start has left: tokens of its ranks, and the port of a store that no longer exists.
    for rank in (1, 2):
        stale.set(f"token/{rank}", f"old{rank}")
        stale.set(f"port/{rank}", f"old{rank} 1")
    stores = {}

    def join(rank):
        stores[rank] = fresh_store(Launch(World(rank, 3), "localhost", agent.port, True), timeout=60)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in (1, 0, 2)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join(60)
    stores[0].set("value", "from rank 0")
    assert [stores[rank].get("value") for rank in (1, 2)] == [b"from rank 0"] * 2
    assert not agent.check(["value"])


@pytest.mark.parametrize(("rank", "reason"), [(0, "rank 1 did not join"), (1, "rank 0 did not answer")])
def test_a_rank_that_does_not_come_is_waited_for_until_the_deadline(rank, reason):
    agent = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(TimeoutError, match=reason):
        fresh_store(Launch(World(rank, 2), "localhost", agent.port, True), timeout=0.5)


def test_an_address_where_nobody_listens_is_one_line(monkeypatch):
    silent = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=1))
    port = silent.port
    del silent
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LostRankError) as error, joined("cpu", timeout=1.0, join_timeout=1.0):
        pass
    assert str(error.value).startswith(f"the ranks did not find each other within 1 s at localhost:{port} (")
    assert "\n" not in str(error.value)


def test_a_rank_that_does_not_reach_the_store_of_rank_0_is_named(monkeypatch):
    free = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    port = free.port
    del free
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LostRankError) as error, joined("cpu", timeout=600.0, join_timeout=0.5):
        pass
    assert str(error.value) == (
        f"the ranks did not find each other within 0.5 s at localhost:{port} (rank 1 did not join)"
    )


def test_joining_alone_needs_no_process_group(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu", timeout=1.0, join_timeout=1.0) as world:
        assert world == ALONE
        assert not dist.is_initialized()
