"""Which executor a name makes, and arguments that are refused."""

import pytest
import torch

from oekd_fast import native as native_module
from oekd_fast.parallel.executor import SequentialExecutor, ThreadExecutor, make_executor

from ..conftest import ISAS
from .calls import fine, native


def test_the_kinds(monkeypatch):
    if ISAS:
        assert isinstance(make_executor("auto", 2, "cpu"), ThreadExecutor)
        assert isinstance(make_executor("auto", 1, "cpu"), SequentialExecutor)
    assert isinstance(make_executor("sequential", 2, torch.device("cpu")), SequentialExecutor)
    assert isinstance(make_executor("auto", 2, "meta"), SequentialExecutor)  # no streams there
    monkeypatch.setattr(native_module, "_extension", None)
    monkeypatch.setattr(native_module, "_reason", "No module named 'oekd_fast._native'")
    assert isinstance(make_executor("auto", 2, "cpu"), SequentialExecutor)
    with pytest.raises(RuntimeError, match="^kind 'parallel' is not there on device 'cpu': .*oekd_fast._native"):
        make_executor("parallel", 2, "cpu")


@native
def test_a_device_without_streams():
    text = "^kind 'parallel' is not there on device 'meta': Backend doesn't support acquiring a stream from pool.$"
    with pytest.raises(RuntimeError, match=text):
        make_executor("parallel", 2, "meta")


@pytest.mark.parametrize(
    "arguments, options, text",
    [
        (("both", 2), {}, r"kind: expected one of \('auto', 'parallel', 'sequential'\), got 'both'"),
        (("auto", 0), {}, "num_students: expected an integer >= 1, got 0"),
        (("auto", 2.0), {}, "num_students: expected an integer >= 1, got 2.0"),
        (("auto", 2), {"costs": [1.0]}, r"costs: expected 2 numbers >= 0, one a student, got \[1.0\]"),
        (("auto", 2), {"costs": [1.0, -1.0]}, r"costs: expected 2 numbers >= 0, one a student, got \[1.0, -1.0\]"),
    ],
)
def test_bad_options(arguments, options, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        make_executor(*arguments, "cpu", **options)


def test_bad_arguments(kind):
    executor, x = make_executor(kind, 2, "cpu", deterministic=True), torch.ones(())
    for error, text, call in [
        (ValueError, "branches: expected 2, one a student, got 1", lambda: executor.forward([fine], [1, 2])),
        (ValueError, "inputs: expected 2, one a student, got 3", lambda: executor.forward([fine] * 2, [1, 2, 3])),
        (ValueError, "roots: expected 2, one a student, got 1", lambda: executor.backward([[x]], [[x], [x]])),
        (ValueError, "grads: expected 2, one a student, got 0", lambda: executor.backward([[x], [x]], [])),
        (ValueError, r"grads\[1\]: expected 1, one a root, got 0", lambda: executor.backward([[x], [x]], [[x], []])),
        (TypeError, r"roots\[1\]\[0\]: expected a tensor, got int", lambda: executor.backward([[x], [3]], [[x], [x]])),
        (
            TypeError,
            r"grads\[0\]\[0\]: expected a tensor or None, got float",
            lambda: executor.backward([[x], [x]], [[1.0], [x]]),
        ),
    ]:
        with pytest.raises(error, match=f"^{text}$"):
            call()
