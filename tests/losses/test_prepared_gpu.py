"""Prepared calls of the loss on a GPU: the same bits as the usual path, on several streams and devices, in captures."""

import pytest
import torch

from oekd_fast import native
from oekd_fast.losses import prepared

from ..support.gpu_calls import FORMS, SIZES, by_autograd, problem, same, value_and_grad

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(native.launch_module() is None, reason="no launch is prepared without the C++ extension"),
]


@pytest.fixture
def losses(monkeypatch):
    """An empty cache, in place of that of the process."""
    losses = prepared.PreparedLosses()
    monkeypatch.setattr(prepared, "on_cuda", lambda: losses)
    return losses


def usual(monkeypatch, form, *arguments, **options):
    """The result of a call that is not prepared."""
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "on_cuda", lambda: None)
        return form(*arguments, **options)


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@FORMS
def test_prepared_calls_give_the_same_bits(losses, monkeypatch, size, dtype, form):
    for seed in range(5):
        call = problem(*size, dtype, seed=seed)
        numbers = {"ce_weight": 0.5 + seed, "kd_weight": 1.0 / (1 + seed)}
        same(form(*call, **numbers), usual(monkeypatch, form, *call, **numbers))
    assert len(losses) == 1


@FORMS
def test_streams_have_launches_of_their_own_and_captures_take_the_usual_path(losses, form):
    call = problem(300, 100)
    expected = form(*call)
    for count in (1, 2):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results = [form(*call) for _ in range(4)]
        torch.cuda.synchronize()
        for result in results:
            same(result, expected)
        assert len(losses) == count
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = form(*call)
    assert len(losses) == 2
    graph.replay()
    same(captured, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("form", [value_and_grad, by_autograd])
def test_devices_have_launches_of_their_own(losses, form):
    logits, target = problem(300, 100)
    expected = form(logits, target)
    for device in ("cuda:0", "cuda:1"):
        moved = [z.to(device) for z in logits], target.to(device)
        with torch.cuda.device(device):
            results = [form(*moved) for _ in range(4)]
        for result in (*results, form(*moved)):  # the last call may be on another device than the current one
            same([x.cpu() for x in result], [x.cpu() for x in expected])
    assert len(losses) == 2
