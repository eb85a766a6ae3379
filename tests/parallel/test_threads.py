"""Students run at the same time on host threads, which share the intra-op threads."""

import threading

import torch

from oekd_fast.native import executor_class
from oekd_fast.parallel.executor import make_executor
from oekd_fast.parallel.threads import largest_first

from ..conftest import needs_executor
from .calls import TIMEOUT, Meet, finishes, parallel


@needs_executor
def test_two_students_run_at_the_same_time():
    barrier = threading.Barrier(2, timeout=TIMEOUT)
    inputs = [torch.ones(2, requires_grad=True) for _ in range(2)]

    def branch(x):
        barrier.wait()
        return Meet.apply(x, barrier), threading.get_ident()

    executor = parallel()
    (first, one), (second, two) = executor.forward([branch] * 2, inputs)
    assert len({one, two, threading.get_ident()}) == 3
    executor.backward([[first], [second]], [[torch.ones(2)]] * 2)
    assert all(x.grad.tolist() == [1, 1] for x in inputs)


@needs_executor
def test_students_start_in_the_given_order_after_the_serial_ones(threads):
    threads(1)
    started = []
    executor = executor_class()(3, torch.device("cpu"), workers=1, threads=1, order=[2, 0, 1])
    executor.forward([started.append] * 3, [0, 1, 2], [])
    executor.forward([started.append] * 3, [0, 1, 2], [0, 1])
    assert started == [2, 0, 1, 0, 1, 2]
    assert largest_first([1.0, 5.0, 1.0, 9.0]) == [3, 1, 0, 2]


@needs_executor
def test_there_may_be_more_workers_than_students():
    for workers in (6, 2**31 - 1):  # no more threads than students are started
        executor = executor_class()(2, torch.device("cpu"), workers=workers, threads=1, order=[0, 1])
        for _ in range(20):
            assert executor.forward([abs] * 2, [-1, -2], []) == ([1, 2], [])


@needs_executor
def test_students_share_the_threads_and_the_caller_keeps_its_number(threads):
    for available, deterministic, inside in [(2, False, 1), (4, False, 2), (4, True, 1), (2, True, 1)]:
        threads(available)
        executor = make_executor("parallel", 2, "cpu", deterministic=deterministic)
        for _ in range(2):
            assert executor.forward([lambda _: torch.get_num_threads()] * 2, [0, 0]) == [inside] * 2
        assert torch.get_num_threads() == available
        assert finishes(torch.get_num_threads) == [available]  # new threads inherit it too


@needs_executor
def test_a_new_pool_does_not_change_the_number_of_threads_elsewhere(threads):
    def set_and_read():
        torch.set_num_threads(3)
        parallel()
        return torch.get_num_threads()

    assert finishes(set_and_read) == [3]
    assert torch.get_num_threads() == 2 and finishes(torch.get_num_threads) == [3]


@needs_executor
def test_a_changed_number_of_threads_is_divided_again(threads):
    executor = parallel(deterministic=False)
    for available, inside in [(2, 1), (4, 2), (1, 1), (4, 2)]:
        threads(available)
        assert executor.forward([lambda _: torch.get_num_threads()] * 2, [0, 0]) == [inside] * 2


def test_sequential_execution_has_one_thread_in_deterministic_mode():
    executor = make_executor("sequential", 2, "cpu", deterministic=True)
    assert executor.forward([lambda _: torch.get_num_threads()] * 2, [0, 0]) == [1, 1]
    assert torch.get_num_threads() == 2
