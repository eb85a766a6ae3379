"""Executors called from several threads, from inside students and after a fork; destruction of executors."""

import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch

from ..conftest import needs_executor
from .calls import TIMEOUT, failing, fine, finishes, parallel


@needs_executor
def test_python_threads_can_share_an_executor():
    executor = parallel(4)

    def calls(offset):
        for i in range(50):
            inputs = [torch.full((3,), float(offset + i), requires_grad=True) for _ in range(4)]
            results = executor.forward([torch.exp] * 4, inputs)
            executor.backward([[r.sum()] for r in results], [[None]] * 4)
            assert all(torch.equal(x.grad, x.exp()) for x in inputs)
        return "done"

    assert finishes(*(lambda i=i: calls(i / 100) for i in range(3))) == ["done"] * 3


@needs_executor
def test_students_may_call_executors_themselves():
    outer, other = parallel(), parallel()

    def add(x):
        return x + 1

    def nested(x):
        return outer.forward([add] * 2, [x, x])

    def through_another(x):
        return other.forward([nested] * 2, [x, x])

    (came,) = finishes(lambda: outer.forward([nested, through_another], [1, 2]))
    assert came == [[2, 2], [[3, 3], [3, 3]]]
    (error,) = finishes(lambda: outer.forward([fine, lambda x: outer.forward([fine, failing], [x, x])], [1, 2]))
    assert str(error) == "student 2: StudentError: student 2: ValueError: cannot take 2"


@needs_executor
@pytest.mark.parametrize("waiting", [1, 2], ids=["one student", "all students"])
def test_students_may_wait_for_threads_that_use_the_executor(waiting):
    executor, inputs = parallel(), [torch.ones(2, requires_grad=True) for _ in range(2)]

    def in_thread():
        results = executor.forward([torch.exp] * 2, inputs)
        executor.backward([[r.sum()] for r in results], [[None]] * 2)
        return results

    def branch(j):
        return finishes(in_thread)[0] if j < waiting else None

    for _ in range(3):
        (came,) = finishes(lambda: executor.forward([branch] * 2, [0, 1]))
        assert all(torch.equal(r, x.exp()) for results in came[:waiting] for r, x in zip(results, inputs, strict=True))
    assert all(torch.allclose(x.grad, 3 * waiting * x.exp()) for x in inputs)


@needs_executor
def test_objects_that_a_worker_thread_deletes_may_call_the_executor():
    executor, local, came = parallel(4), threading.local(), []

    class Last:
        def __del__(self):
            came.append(executor.forward([abs] * 4, [-1, -2, -3, -4]))

    def branch(_):
        local.last = Last()  # deleted when the task of this thread ends

    finishes(lambda: executor.forward([branch] * 4, [0] * 4))
    assert came == [[1, 2, 3, 4]] * 4


@needs_executor
def test_backward_can_be_called_inside_a_students_backward():
    executor = parallel()

    class Reentrant(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            x = torch.ones(2, requires_grad=True)
            with torch.enable_grad():
                executor.backward([[(3 * x).sum()], []], [[None], []])
            return grad * x.grad

    inputs = [torch.ones(2, requires_grad=True) for _ in range(2)]
    finishes(lambda: executor.backward([[Reentrant.apply(x).sum()] for x in inputs], [[None]] * 2))
    assert all(x.grad.tolist() == [3, 3] for x in inputs)


@needs_executor
@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_the_pool_is_destroyed_with_its_executor():
    def threads():
        return set(os.listdir("/proc/self/task"))

    before = threads()
    executor = parallel()
    own = threads() - before  # threads of earlier tests may end meanwhile
    assert len(own) == 2
    del executor
    deadline = time.monotonic() + TIMEOUT  # a joined thread may still be listed for a moment
    while threads() & own and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads() & own


@pytest.mark.slow
@needs_executor
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_an_executor_works_after_a_fork_and_at_exit():
    # In the child torch builds its autograd engine anew at the first use. If two students do this at the same time, the
    # child crashes in some runs.
    code = """
    import os, sys, warnings
    import torch
    from torch.utils.checkpoint import checkpoint
    from oekd_fast.parallel.executor import make_executor

    warnings.simplefilter("ignore")  # newer Python versions warn about fork in a process with threads
    torch.set_num_threads(2)
    used, dropped = (make_executor("parallel", 2, "cpu") for _ in range(2))

    def check(executor):
        x = [torch.full((2,), 2.0, requires_grad=True) for _ in range(2)]
        for _ in range(2):
            results = executor.forward([torch.square] * 2, x)
        executor.backward([[r.sum()] for r in results], [[None]] * 2)
        assert all(t.grad.tolist() == [4, 4] for t in x)
        for reentrant in (False, True):
            branch = lambda x: checkpoint(torch.square, x, use_reentrant=reentrant)
            executor.backward([[r.sum()] for r in executor.forward([branch] * 2, x)], [[None]] * 2)
        assert all(t.grad.tolist() == [12, 12] for t in x)
        with torch.no_grad():
            assert all(not r.requires_grad for r in executor.forward([torch.square] * 2, x))
        executor.forward([lambda x: torch.square(x).sum().backward()] * 2, x)
        assert all(t.grad.tolist() == [16, 16] for t in x)
        inside = lambda x: torch.func.grad(lambda x: torch.square(x).sum())(x)
        assert all(r.tolist() == [4, 4] for r in executor.forward([inside] * 2, x))

    check(used), check(dropped)
    child = os.fork()
    if child == 0:
        del dropped
        check(used)
        print("child", flush=True)
        sys.exit(7)
    _, status = os.waitpid(child, 0)
    check(used)
    print("parent", os.waitstatus_to_exitcode(status))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "child\nparent 7\n", "")
