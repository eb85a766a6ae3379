"""Exchange of small values, votes and agreement of ranks."""

import time

import pytest
import torch

from oekd_fast.distributed.agreement import check_same_on_all, failing_together
from oekd_fast.distributed.vote import Vote
from oekd_fast.distributed.world import ALONE, LostRankError, World, naming_lost_ranks

from ..support.ranks import RankError


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (2, 3), (3, 3), (128, 3), (127, 5), (7, 1)])
def test_parts_cover_all_rows_once_and_differ_by_one_row_at_most(count, size):
    parts = [World(rank, size).part(count) for rank in range(size)]
    assert [row for part in parts for row in range(count)[part.rows]] == list(range(count))
    assert max(p.count for p in parts) - min(p.count for p in parts) <= 1
    assert all(part.of == count for part in parts)


def exchange(world):
    own = torch.arange(3) + 10 * world.rank
    gathered = world.gather(own)
    texts = world.gather_bytes(b"x" * world.rank * 3)
    sent = world.from_main(bytes(range(256)) if world.is_main else None)
    nothing = world.from_main(b"" if world.is_main else None)
    vote = Vote(world)
    largest = [vote.of_all(world.rank), vote.of_all(0), vote.of_all(5 if world.rank == 1 else 0)]
    world.wait_for_all()
    return torch.stack(gathered).tolist(), texts, sent, nothing, largest


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_rank_gets_what_all_ranks_pass(ranks, size):
    expected = (
        [[10 * rank + i for i in range(3)] for rank in range(size)],
        [b"x" * rank * 3 for rank in range(size)],
        bytes(range(256)),
        b"",
        [size - 1, 0, 5 if size > 1 else 0],
    )
    assert ranks.run(size, exchange) == [expected] * size


def raise_on(world, which):
    with failing_together(world):
        if world.rank in which:
            raise FileNotFoundError(f"file of rank {world.rank}")
    return "all succeeded"


def test_an_error_is_told_by_one_rank_and_ends_all(ranks):
    outcomes = ranks.outcomes(3, raise_on, (1, 2))
    assert [outcome.kind for outcome in outcomes] == ["OtherRankError", "FileNotFoundError", "OtherRankError"]
    assert {outcome.message for outcome in outcomes} == {"rank 1: file of rank 1", "file of rank 1"}
    assert ranks.run(3, raise_on, ()) == ["all succeeded"] * 3
    with pytest.raises(FileNotFoundError, match="file of rank 0"):
        raise_on(ALONE, (0,))


def compare(world, facts):
    check_same_on_all(world, facts[world.rank])


def test_a_rank_that_differs_is_named_with_what_differs(ranks):
    same = {"seed": 3, "model": "resnet20", "weights": None}
    assert ranks.run(2, compare, [same, same]) == [None, None]
    outcomes = ranks.outcomes(2, compare, [same, same | {"seed": 4, "new": 1}])
    assert [outcome.kind for outcome in outcomes] == ["OtherRankError", "ValueError"]
    assert outcomes[1].message == "seed: expected 3 as on rank 0, got 4; new: expected None as on rank 0, got 1"
    assert outcomes[0].message == f"rank 1: {outcomes[1].message}"


def leave_early(world):
    if world.rank == 1:
        return None
    start = time.monotonic()
    try:
        world.gather(torch.zeros(1))
    except LostRankError as error:
        return str(error), time.monotonic() - start
    return None


def test_a_lost_rank_gives_one_line(ranks):
    (message, seconds), _ = ranks.run(2, leave_early)
    assert message.startswith("another rank has ended, or does not answer (")
    assert "\n" not in message
    assert "/" not in message  # no path of gloo's sources
    assert seconds < 60


def test_errors_of_exchanges_are_one_line():
    with pytest.raises(LostRankError, match=r"^another rank has ended, or does not answer \(Connection closed\)$"):
        with naming_lost_ranks():
            raise RuntimeError("[/pytorch/third_party/gloo/pair.cc:547] Connection closed. This may indicate X\nmore")


def test_the_pool_of_these_tests_reports_errors(ranks):
    with pytest.raises(RankError, match="rank 1: FileNotFoundError"):
        ranks.run(2, raise_on_one)


def raise_on_one(world):
    if world.rank == 1:
        raise FileNotFoundError("nothing")
