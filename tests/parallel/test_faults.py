"""Errors inside a student reach the caller with their traceback, and the executor remains usable."""

import copy
import signal
import threading
import traceback
import weakref
from _thread import interrupt_main

import pytest
import torch

from oekd_fast.parallel.executor import StudentError, make_executor

from ..conftest import needs_executor
from .calls import TIMEOUT, Fail, failing, fine, finishes, parallel, raised_by


@pytest.mark.parametrize(
    "branches, student, message",
    [
        ([failing, fine, fine], 0, "student 1: ValueError: cannot take a"),
        ([fine, fine, failing], 2, "student 3: ValueError: cannot take c"),
        ([fine, failing, failing], 1, "student 2: ValueError: cannot take b; student 3 failed too"),
        ([failing] * 3, 0, "student 1: ValueError: cannot take a; student 2 failed too; student 3 failed too"),
    ],
)
def test_an_error_names_the_student_and_keeps_its_traceback(kind, branches, student, message):
    executor, ran = make_executor(kind, 3, "cpu", deterministic=True), []
    (error,) = finishes(
        lambda: executor.forward([lambda x, b=b: ran.append(x) or b(x) for b in branches], ["a", "b", "c"])
    )
    assert type(error) is StudentError and isinstance(error, RuntimeError)
    assert str(error) == message and error.student == student
    assert type(error.__cause__) is ValueError
    assert traceback.extract_tb(error.__cause__.__traceback__)[-1].name == "failing"
    assert sorted(ran) == ["a", "b", "c"]
    assert executor.forward([fine] * 3, [1, 2, 3]) == [1, 2, 3]


def test_errors_name_students_by_their_place_in_the_family(kind):
    executor = make_executor(kind, 2, "cpu", deterministic=True, members=[1, 3])
    (error,) = finishes(lambda: executor.forward([failing, failing], ["a", "b"]))
    assert str(error) == "student 2: ValueError: cannot take a; student 4 failed too" and error.student == 1
    (error,) = finishes(lambda: copy.deepcopy(executor).forward([fine, failing], ["a", "b"]))
    assert str(error) == "student 4: ValueError: cannot take b" and error.student == 3


def test_members_have_to_be_as_many_as_students(kind):
    with pytest.raises(ValueError, match=r"^members: expected 2 indices, one for each student, got \[0, 1, 2\]$"):
        make_executor(kind, 2, "cpu", members=range(3))


def test_an_error_in_backward_names_the_student(kind):
    executor, x = (
        make_executor(kind, 3, "cpu", deterministic=True),
        [torch.ones(2, requires_grad=True) for _ in range(3)],
    )
    results = executor.forward([fine, Fail.apply, torch.exp], x)
    for given in x:
        given.grad = None
    (error,) = finishes(lambda: executor.backward([[r.sum()] for r in results], [[None]] * 3))
    assert type(error) is StudentError and str(error) == "student 2: LookupError: no gradient today"
    assert type(error.__cause__) is LookupError and error.student == 1
    last = traceback.extract_tb(error.__cause__.__traceback__)[-1]
    assert last.name == "backward" and last.line == 'raise LookupError("no gradient today")'
    assert x[0].grad is not None and x[2].grad is not None  # the other students have finished
    results = executor.forward([torch.exp] * 3, x)
    executor.backward([[r.sum()] for r in results], [[None]] * 3)


@pytest.mark.parametrize(
    "grad, twice, text",
    [
        (None, False, "student 1: RuntimeError: grad can be implicitly created only for scalar outputs"),
        (torch.ones(5), False, "student 1: RuntimeError: "),
        (torch.ones(2), True, "student 1: RuntimeError: Trying to backward through the graph a second time"),
    ],
)
def test_errors_of_torch_about_an_invalid_graph_are_kept(kind, grad, twice, text):
    executor, x = make_executor(kind, 2, "cpu", deterministic=True), torch.ones(2, requires_grad=True)
    root = x.exp()
    if twice:
        executor.backward([[root], []], [[grad], []])
    error = raised_by(lambda: executor.backward([[root], []], [[grad], []]))
    assert str(error).startswith(text) and type(error.__cause__) is RuntimeError
    assert "Exception raised from" not in str(error)  # no C++ stack


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_raised_unchanged(kind, interrupt):
    def interrupted(_):
        raise interrupt("now")

    executor = make_executor(kind, 3, "cpu", deterministic=True)
    error = raised_by(lambda: executor.forward([fine, interrupted, fine], [0] * 3))
    assert type(error) is interrupt and error.args == ("now",)
    assert executor.forward([fine] * 3, [1, 2, 3]) == [1, 2, 3]


@pytest.fixture
def ctrl_c():
    """Restore Python's handler of Ctrl-C, which background processes start without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@needs_executor
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_is_raised_after_all_students_have_finished():
    def interrupt(_):
        interrupt_main()

    def slow(_):
        barrier.wait()
        finished.append(True)

    executor, finished = parallel(3), []
    barrier = threading.Barrier(2, timeout=TIMEOUT)
    with pytest.raises(KeyboardInterrupt):
        executor.forward([interrupt, slow, slow], [0] * 3)
    assert finished == [True, True]
    assert executor.forward([fine] * 3, [1, 2, 3]) == [1, 2, 3]


@needs_executor
def test_no_reference_is_kept_after_a_call():
    class Value:
        pass

    executor = parallel(3)
    inputs = [Value() for _ in range(3)]
    results = executor.forward([lambda _: Value()] * 3, inputs)
    kept = [weakref.ref(value) for value in (*inputs, *results)]
    del inputs, results
    assert [ref() for ref in kept] == [None] * 6

    kept = []

    def branch(fails):
        value = Value()
        kept.append(weakref.ref(value))
        if fails:
            raise ValueError("with the value in its frame")
        return value

    with pytest.raises(StudentError):
        executor.forward([branch] * 3, [False, True, True])
    assert [ref() for ref in kept] == [None] * 3
