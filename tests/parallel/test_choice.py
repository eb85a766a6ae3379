"""Choice of the executor by `make_executor`, and its argument validation."""

import pytest
import torch

from oekd_fast import native
from oekd_fast.parallel.executor import SequentialExecutor, ThreadExecutor, make_executor

from ..conftest import needs_executor
from .calls import fine


def test_each_kind_returns_its_executor(monkeypatch):
    if native.why_no_executor() is None:
        assert isinstance(make_executor("auto", 2, "cpu"), ThreadExecutor)
        assert isinstance(make_executor("auto", 1, "cpu"), SequentialExecutor)
    assert isinstance(make_executor("sequential", 2, torch.device("cpu")), SequentialExecutor)
    assert isinstance(make_executor("auto", 2, "meta"), SequentialExecutor)  # a device without streams
    monkeypatch.setattr(native, "_executor", None)
    monkeypatch.setattr(native, "_executor_reason", "executor: expected _executor.other.so, got none")
    assert isinstance(make_executor("auto", 2, "cpu"), SequentialExecutor)
    text = "^kind 'parallel' is unavailable on device 'cpu': executor: expected _executor.other.so, got none$"
    with pytest.raises(RuntimeError, match=text):
        make_executor("parallel", 2, "cpu")


@needs_executor
def test_parallel_raises_on_a_device_without_streams():
    text = "^kind 'parallel' is unavailable on device 'meta': Backend doesn't support acquiring a stream from pool.$"
    with pytest.raises(RuntimeError, match=text):
        make_executor("parallel", 2, "meta")


@pytest.mark.parametrize(
    "arguments, options, text",
    [
        (("both", 2), {}, r"kind: expected one of \('auto', 'parallel', 'sequential'\), got 'both'"),
        (("auto", 0), {}, "num_students: expected an integer >= 1, got 0"),
        (("auto", 2.0), {}, "num_students: expected an integer >= 1, got 2.0"),
        (("auto", 2), {"costs": [1.0]}, r"costs: expected 2 numbers >= 0, one for each student, got \[1.0\]"),
        (
            ("auto", 2),
            {"costs": [1.0, -1.0]},
            r"costs: expected 2 numbers >= 0, one for each student, got \[1.0, -1.0\]",
        ),
    ],
)
def test_invalid_options_raise(arguments, options, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        make_executor(*arguments, "cpu", **options)


@needs_executor
def test_a_sequence_that_changes_its_length_raises_and_the_executor_remains_usable():
    class Longer(list):
        def __len__(self):
            return 2

    for kind in ("sequential", "parallel"):
        executor = make_executor(kind, 2, "cpu", deterministic=True)
        for branches, inputs in ((Longer([fine] * 9), [1, 2]), ([fine] * 2, Longer([1]))):
            with pytest.raises(ValueError, match="expected 2, one for each student, got a sequence that changes its"):
                executor.forward(branches, inputs)
        assert executor.forward([fine] * 2, [1, 2]) == [1, 2]


def test_invalid_arguments_of_forward_and_backward_raise(kind):
    executor, x = make_executor(kind, 2, "cpu", deterministic=True), torch.ones(())
    forward, backward = executor.forward, executor.backward
    for error, text, call in [
        (ValueError, "branches: expected 2, one for each student, got 1", lambda: forward([fine], [1, 2])),
        (ValueError, "inputs: expected 2, one for each student, got 3", lambda: forward([fine] * 2, [1, 2, 3])),
        (ValueError, "roots: expected 2, one for each student, got 1", lambda: backward([[x]], [[x], [x]])),
        (ValueError, "grads: expected 2, one for each student, got 0", lambda: backward([[x], [x]], [])),
        (ValueError, r"grads\[1\]: expected 1, one for each root, got 0", lambda: backward([[x], [x]], [[x], []])),
        (TypeError, r"roots\[1\]\[0\]: expected a tensor, got int", lambda: backward([[x], [3]], [[x], [x]])),
        (
            TypeError,
            r"grads\[0\]\[0\]: expected a tensor or None, got float",
            lambda: backward([[x], [x]], [[1.0], [x]]),
        ),
    ]:
        with pytest.raises(error, match=f"^{text}$"):
            call()
