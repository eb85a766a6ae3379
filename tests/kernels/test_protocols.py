"""The order in which programs of a launch see each other's results: kernels in a simulator of warps and memory.

`tests/support/protocols` holds the simulator and the synchronisation of the kernels. Programs start in any order, any
number of them runs at a time, and each launch is repeated with the counters that the first one left.
"""

import ast
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import oekd_fast.kernels

from ..support.protocols.kernels import Arrival, Streamed, tree
from ..support.protocols.machine import BARRIER, Add, Hang, Machine, Read, Shared, Until, Write, dirty
from ..support.protocols.memory import Memory, Race

ARRIVAL = Arrival()
KERNELS = Path(oekd_fast.kernels.__file__).parent


def machine(seed: int, programs: int, warps: int, pick: random.Random) -> Machine:
    return Machine(seed, pick.randint(1, programs), warps, in_order=pick.random() < 0.5)


def twice(gpu: Machine, program, programs: int) -> None:
    for _ in range(2):
        gpu.launch(program, programs)
        assert not dirty(gpu.memory)


def run_streamed(seed: int, **mutations) -> None:
    pick = random.Random(seed)
    warps, programs = pick.choice((1, 2, 2, 3)), pick.randint(1, 5)
    launch = Streamed(
        rows=pick.randint(0, 4), chunks=pick.randint(1, 3), lag=pick.randint(1, 4), grads=pick.random() < 0.7,
        programs=programs, warps=warps, sum_rows=pick.choice((1, 2, 4)),
    )  # fmt: skip
    twice(machine(seed, programs, warps, pick), replace(launch, **mutations), programs)


def run_tree(seed: int, arrival: Arrival = ARRIVAL) -> None:
    pick = random.Random(seed)
    levels = tuple(pick.randint(1, 3) for _ in range(pick.choice((1, 1, 2, 3))))
    programs, warps = 1, pick.choice((1, 2, 3))
    for members in levels:
        programs *= members
    twice(machine(seed, programs, warps, pick), tree(levels, warps, arrival), programs)


def faults(run, configurations: int = 150, **mutations) -> set[type]:
    """Return the kinds of faults that configurations of a mutated protocol end in."""
    found = set()
    for seed in range(configurations):
        try:
            run(seed, **mutations)
        except AssertionError as fault:
            found.add(type(fault))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_streamed, run_tree])
def test_every_access_is_ordered_and_every_launch_ends(run):
    for seed in range(1500):
        run(seed)


@pytest.mark.parametrize(
    "mutation",
    [
        {"poll_order": "relaxed"},
        {"final_order": "relaxed"},
        {"ready_order": "relaxed"},
        {"barrier_before_ready": False},
        {"barrier_after_poll": False},
        {"barrier_after_final": False},
    ],
    ids=lambda mutation: "_".join(map(str, *mutation.items())),
)
def test_an_order_or_a_barrier_that_is_missing_in_the_streamed_kernel_is_a_race(mutation):
    assert Race in faults(run_streamed, **mutation)


@pytest.mark.parametrize(
    "arrival",
    [
        *(Arrival(order=order) for order in ("relaxed", "acquire", "release")),
        *(Arrival(barrier_before=False), Arrival(barrier_after=False)),
    ],
    ids=str,
)
def test_an_order_or_a_barrier_that_is_missing_at_an_arrival_is_a_race(arrival):
    assert Race in faults(run_tree, arrival=arrival)
    assert Race in faults(run_streamed, arrival=arrival)


def test_a_ticket_that_waits_for_a_later_one_hangs():
    assert Hang in faults(run_streamed, lag=0, gradients_first=True, grads=True)
    assert not faults(run_streamed, lag=0, grads=True)


def test_counters_that_are_not_reset_are_found():
    assert AssertionError in faults(run_streamed, clean=False)
    assert AssertionError in faults(run_tree, arrival=Arrival(reset=False))


def test_memory_needs_an_order_between_writes_and_reads_of_the_same_data():
    memory = Memory()
    memory.begin_launch(2)
    memory.write(0, "x")
    with pytest.raises(Race, match="warp 1 would read x, which warp 0 has written without an order"):
        memory.read(1, "x")
    memory.add(0, "flag", 1, "release")
    with pytest.raises(Race, match="warp 1 would write x"):
        memory.add(1, "flag", 0, "relaxed")
        memory.write(1, "x")
    memory.add(1, "flag", 0, "acquire")
    memory.read(1, "x")
    with pytest.raises(Race, match="warp 0 would write x, which warp 1 has read without an order"):
        memory.write(0, "x")
    with pytest.raises(Race, match="warp 1 reads y, which nobody has written"):
        memory.read(1, "y")


def test_memory_orders_a_release_sequence_and_not_what_follows_a_plain_store():
    memory = Memory()
    memory.begin_launch(3)
    memory.write(0, "x")
    memory.add(0, "flag", 1, "release")
    memory.add(1, "flag", 1, "relaxed")  # continues the sequence
    memory.add(2, "flag", 0, "acquire")
    memory.read(2, "x")
    with pytest.raises(Race, match="warp 2 would store to flag, which warp 1 has added to without an order"):
        memory.store(2, "flag", 0)


def test_memory_orders_launches_and_keeps_counters():
    memory = Memory()
    memory.begin_launch(2)
    memory.write(0, "x")
    assert memory.add(0, "flag", 3, "relaxed") == 0
    memory.begin_launch(2)
    memory.store(1, "flag", 1)
    assert memory.value("flag") == 1


def test_a_barrier_waits_for_all_warps_and_orders_them():
    seen = []

    def program(number: int, warp: int) -> Iterator:
        yield Write(("x", number, warp))
        seen.append((number, warp))
        yield BARRIER
        assert {(number, 0), (number, 1)} <= set(seen)
        yield Read(("x", number, 1 - warp))

    Machine(0, resident=2, warps=2, in_order=False).launch(program, 4)
    assert len(seen) == 8


def test_a_shared_operation_is_done_once_and_orders_nothing():
    def program(number: int, warp: int) -> Iterator:
        if warp == 0:
            yield Write("x")
        assert (yield Shared(Add("counter", 5, "acq_rel"))) == 0
        if warp == 1:
            yield Read("x")

    gpu = Machine(0, resident=1, warps=2, in_order=True)
    with pytest.raises(Race, match="warp 1 would read x"):
        gpu.launch(program, 1)
    assert gpu.memory.value("counter") == 5


def test_programs_that_wait_for_one_that_has_not_started_hang():
    def program(number: int, warp: int) -> Iterator:
        if number == 0:
            yield Until("flag", 1, "acquire")
        else:
            yield Add("flag", 1, "release")

    Machine(0, resident=2, warps=1, in_order=True).launch(program, 2)
    with pytest.raises(Hang, match="1 programs wait for each other, 1 have not started"):
        Machine(0, resident=1, warps=1, in_order=True).launch(program, 2)


def synchronisation(file: str, function: str) -> list[str]:
    """Return the barriers, atomics and arrivals of a kernel, in the order of its source."""
    tree = ast.parse((KERNELS / file).read_text(encoding="utf-8"))
    (body,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    calls = sorted((n for n in ast.walk(body) if isinstance(n, ast.Call)), key=lambda n: (n.lineno, n.col_offset))
    found = []
    for call in calls:
        name = ast.unparse(call.func)
        if name == "tl.atomic_add":
            (order,) = (ast.literal_eval(k.value) for k in call.keywords if k.arg == "sem")
            found.append(f"{ast.unparse(call.args[0])} += {ast.unparse(call.args[1])} {order}")
        elif name == "tl.debug_barrier":
            found.append("barrier")
        elif name in ("arrives_last", "last_to_arrive", "some_missing"):
            found.append(f"{name}({ast.unparse(call.args[0])})")
    return found


def test_the_simulated_protocols_are_those_of_the_kernels():
    arrival = ["barrier", "counter += 1 acq_rel", "barrier"]
    assert synchronisation("common/arrival.py", "arrives_last") == arrival
    assert synchronisation("common/arrival.py", "last_to_arrive") == ["arrives_last(counter)"]
    assert synchronisation("ensemble_kd/streamed.py", "some_missing") == ["arrived += 0 acquire"]
    assert synchronisation("ensemble_kd/streamed.py", "streamed") == [
        "counters + TICKETS += 1 relaxed",
        *("arrived += 0 acquire", "barrier"),
        *("arrives_last(arrived)", "barrier", "arrived += 1 release"),
        "counters + TICKETS += 1 relaxed",
        *("some_missing(counters + ARRIVED + r)", "barrier"),
        "last_to_arrive(counters + DONE)",
    ]
    for file, function, arrivals in [
        ("feature_kd/resident.py", "resident", 3),
        ("feature_kd/tiled.py", "tiled", 2),
        ("feature_kd/value.py", "value", 1),
    ]:
        found = synchronisation(file, function)
        assert len(found) == arrivals and all(step.startswith("last_to_arrive(") for step in found)
