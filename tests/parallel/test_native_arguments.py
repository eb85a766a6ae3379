"""Arguments of the native executor: each wrong one raises an error that names it, and none ends the process."""

import copy
import pickle
from unittest import mock

import pytest
import torch

from oekd_fast.native import executor_class
from oekd_fast.parallel.executor import StudentError, make_executor

from ..conftest import needs_executor
from .calls import fine, parallel

pytestmark = needs_executor
CPU = torch.device("cpu")


def native(num_students=2, device=CPU, **options):
    return executor_class()(num_students, device, **{"workers": 2, "threads": 1, "order": [0, 1]} | options)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"num_students": 0, "order": []}, "num_students: expected an integer >= 1, got 0"),
        ({"num_students": 2**62}, f"order: expected each of the {2**62} students once, got [0, 1]"),
        ({"workers": 0}, "workers: expected an integer >= 1, got 0"),
        ({"workers": -1}, "workers: expected an integer >= 1, got -1"),
        ({"threads": 0}, "threads: expected an integer in 1..{most}, got 0"),
        ({"threads": 2**31 - 1}, "threads: expected an integer in 1..{most}, got 2147483647"),
        ({"order": [0, 0]}, "order: expected each of the 2 students once, got [0, 0]"),
        (
            {"order": [7] * 1000},
            "order: expected each of the 2 students once, got [7, 7, 7, 7, 7, 7, 7, 7, 7, 7] and 990 more",
        ),
    ],
)
def test_invalid_options_raise(options, text):
    with pytest.raises(ValueError) as caught:
        native(**options)
    most = text.format(most=str(caught.value).partition("1..")[2].partition(",")[0])
    assert str(caught.value) == most


@pytest.mark.parametrize(
    "options",
    [
        {"num_students": -1},
        {"num_students": 2**64},
        {"num_students": 2.0},
        {"num_students": None},
        {"device": "cpu"},
        {"device": None},
        {"workers": 2**31},
        {"threads": "1"},
        {"order": [-1, 0]},
        {"order": "01"},
        {"order": None},
    ],
)
def test_options_of_another_type_raise(options):
    with pytest.raises(TypeError):
        native(**options)


@pytest.mark.parametrize(
    "serial, text",
    [([2], "got 2"), ([0, 2**63], f"got {2**63}"), ([1, 1], "got 1 twice"), ([0, 1, 0], "got 0 twice")],
)
def test_serial_students_that_do_not_exist_or_repeat_raise(serial, text):
    with pytest.raises(ValueError, match=f"^serial: expected distinct students below 2, {text}$"):
        native().forward([fine] * 2, [1, 2], serial)


def test_a_branch_that_cannot_be_called_is_a_fault_of_its_student():
    results, faults = native().forward([fine, 3], [1, 2], [])
    assert results == [1, None] and [j for j, _ in faults] == [1] and type(faults[0][1]) is TypeError


def test_invalid_roots_and_gradients_raise():
    executor, x = native(), torch.ones(())
    imitation = mock.MagicMock(spec=torch.Tensor)
    assert isinstance(imitation, torch.Tensor)  # but it has no tensor inside
    for error, roots, grads, text in [
        (ValueError, [[x]], [[x]], "roots, grads: expected one sequence for each of the 2 students"),
        (ValueError, [[x], []], [[], []], "grads[0]: expected 1, one for each root, got 0"),
        (ValueError, [[], [x]], [[], [x, x]], "grads[1]: expected 1, one for each root, got 2"),
        (TypeError, [[x], [imitation]], [[x], [x]], "roots[1][0]: expected a tensor, got MagicMock"),
        (TypeError, [[x], [x]], [[imitation], [x]], "grads[0][0]: expected a tensor or None, got MagicMock"),
        (TypeError, [[None], []], [[None], []], "roots[0][0]: expected a tensor, got NoneType"),
    ]:
        with pytest.raises(error) as caught:
            executor.backward(roots, grads)
        assert str(caught.value) == text


def test_an_executor_without_init_raises():
    kind = executor_class()
    unready = kind.__new__(kind)
    for use in (
        lambda: unready.forward([], [], []),
        lambda: unready.backward([], []),
        lambda: unready.order,
        lambda: unready.inside,
    ):
        with pytest.raises(TypeError, match="^StudentExecutor: expected __init__ to be called first$"):
            use()
    unready.__init__(2, CPU, workers=1, threads=1, order=[0, 1])
    unready.__init__(3, CPU, workers=1, threads=1, order=[2, 1, 0])
    assert unready.forward([fine] * len(unready.order), [1, 2, 3][: len(unready.order)], [])[1] == []


def test_the_native_executor_cannot_be_copied_and_the_others_are_made_anew():
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="^cannot pickle 'oekd_fast._executor.StudentExecutor' object$"):
            duplicate(native())
    used = parallel()
    for executor in (used, make_executor("sequential", 2, "cpu")):
        for same in (copy.copy(executor), copy.deepcopy(executor), pickle.loads(pickle.dumps(executor))):
            assert type(same) is type(executor) and same.forward([abs] * 2, [-1, -2]) == [1, 2]


def test_a_students_error_can_be_pickled_and_copied():
    error = StudentError(1, "student 2: ValueError: no")
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(same), same.student, str(same)) == (StudentError, 1, "student 2: ValueError: no")


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, MemoryError, RecursionError, AssertionError])
def test_every_kind_of_error_names_its_student(kind, error):
    def branch(x):
        raise error("now")

    executor = make_executor(kind, 2, "cpu", deterministic=True)
    with pytest.raises(StudentError, match=f"^student 2: {error.__name__}: now$"):
        executor.forward([fine, branch], [1, 2])


def test_an_error_without_a_message_still_names_its_student(kind):
    class Mute(Exception):
        def __str__(self):
            raise KeyError("no text")

    def branch(x):
        raise Mute

    executor = make_executor(kind, 2, "cpu", deterministic=True)
    with pytest.raises(StudentError, match=r"^student 1: Mute: <no message: str\(\) of the exception failed>$"):
        executor.forward([branch, fine], [1, 2])


def test_unlimited_recursion_through_an_executor_raises():
    executor = parallel()

    def branch(x):
        return executor.forward([branch, fine], [x, x])

    with pytest.raises(StudentError, match="RecursionError: maximum recursion depth exceeded"):
        executor.forward([branch, fine], [1, 2])


def test_an_imitation_of_a_tensor_raises_in_every_executor(kind):
    executor, x = make_executor(kind, 2, "cpu"), torch.ones((), requires_grad=True)
    imitation = mock.MagicMock(spec=torch.Tensor)
    with pytest.raises(TypeError, match=r"^roots\[0\]\[0\]: expected a tensor, got MagicMock$"):
        executor.backward([[imitation], []], [[None], []])
    with pytest.raises(TypeError, match=r"^grads\[0\]\[0\]: expected a tensor or None, got MagicMock$"):
        executor.backward([[x], []], [[imitation], []])
