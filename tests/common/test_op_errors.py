"""Errors of ops: wrong arguments raise ValueError, whatever torch makes of the exception that a kernel throws."""

import math

import pytest
import torch

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.common.op_errors import raising_value_error
from oekd_fast.losses import native_ops

from ..conftest import batch, needs_native

LEARNED = torch.full((2,), 0.5, requires_grad=True)


def raising(error):
    """Make a stand-in of an op that raises `error`, as torch 2.15 does for the exceptions of kernels."""

    def op(*args, **kwargs):
        raise error

    return raising_value_error(op)


@pytest.mark.parametrize(
    "text",
    [
        "target: expected labels in [0, 4) or ignore_index -100, got 4 at row 2",
        "teacher_logits[1]: expected a floating dtype, got Long",
    ],
)
def test_a_wrong_argument_raises_value_error_with_the_same_text_and_no_context(text):
    with pytest.raises(ValueError) as caught:
        raising(RuntimeError(text))()
    assert str(caught.value) == text
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not allocate a tensor [3, 4]"),
        RuntimeError("ensemble_kd: a worker thread failed (out of memory?)"),
        RuntimeError("oekd_fast::norm_relu() Expected a value of type 'Tensor' for argument 'x'"),
        RuntimeError("in a graph\ntarget: expected labels"),
        NotImplementedError("target: expected labels"),
        ValueError("target: expected labels"),
        KeyError("target: expected labels"),
    ],
)
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as caught:
        raising(error)()
    assert caught.value is error


def test_arguments_and_results_pass():
    assert raising_value_error(lambda *args, **kwargs: (args, kwargs))(1, b=2) == ((1,), {"b": 2})


def test_a_graph_records_the_op_itself():
    op = raising_value_error(torch.ops.aten.sin)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    x = torch.ones(3)
    compiled = torch.compile(lambda x: op(x), fullgraph=True, backend=keep)
    assert torch.equal(compiled(x), torch.full((3,), math.sin(1.0)))
    assert [node.target for node in graphs[0].graph.nodes if node.op == "call_function"] == [torch.ops.aten.sin]


@needs_native
@pytest.mark.parametrize(
    "op, function, options",
    [
        ("ensemble_kd_value", ensemble_kd_loss, {}),
        ("ensemble_kd_value_and_grad", ensemble_kd_value_and_grad, {}),
        ("ensemble_kd_value_and_grad_out", ensemble_kd_value_and_grad, {"out": batch(students=2)[0]}),
        ("ensemble_kd_value_and_grad_out", ensemble_kd_loss, {"ensemble_weights": LEARNED, "ensemble_ce_weight": 0.5}),
    ],
)
def test_the_losses_call_the_ops_that_raise_value_error(op, function, options, monkeypatch):
    monkeypatch.setattr(native_ops, op, raising(RuntimeError("target: expected labels, got 9")))
    logits, target = batch(students=2)
    with pytest.raises(ValueError, match="^target: expected labels, got 9$"):
        function(logits, target, **options, backend="native")
