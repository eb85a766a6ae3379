"""Students on CUDA streams: stream assignment, results, memory safety, graph capture, errors."""

import copy

import pytest
import torch
from torch import nn

from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.parallel.executor import StreamExecutor, StudentError, make_executor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
CYCLES = 100_000_000  # duration of a sleeping kernel, about 50 ms


class StreamOfBackward(torch.autograd.Function):
    """The identity; records the stream that its backward runs on."""

    @staticmethod
    def forward(ctx, x, noted, j):
        ctx.noted, ctx.j = noted, j
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.noted[ctx.j] = torch.cuda.current_stream().stream_id
        return grad, None, None


def parallel(num_students):
    executor = make_executor("auto", num_students, DEVICE)
    assert isinstance(executor, StreamExecutor)
    return executor


def step(executor, branches, inputs):
    """Run forward, and backward with gradients of 1; return the results."""
    results = executor.forward(branches, inputs)
    executor.backward([[r] for r in results], [[torch.ones_like(r)] for r in results])
    return results


def layers(num_students):
    torch.manual_seed(0)
    return nn.ModuleList(
        nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(num_students)
    ).to(DEVICE)


def leaves(num_students, seed=0):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    values = [torch.randn(64, 32, device=DEVICE, generator=generator) for _ in range(num_students)]
    return [x.requires_grad_() for x in values]


def test_every_student_has_its_own_stream_in_forward_and_backward():
    executor, caller = parallel(5), torch.cuda.Stream()
    used, noted = [0] * 5, [0] * 5

    def branch(j):
        def forward(x):
            used[j] = torch.cuda.current_stream().stream_id
            return StreamOfBackward.apply(x, noted, j)

        return forward

    with torch.cuda.stream(caller):
        step(executor, [branch(j) for j in range(5)], leaves(5))
        assert torch.cuda.current_stream() == caller
    torch.cuda.synchronize()
    assert len({*used, caller.stream_id, torch.cuda.default_stream().stream_id}) == 7
    assert noted == used


@pytest.mark.parametrize("num_students", [3, 40])
def test_results_equal_those_of_sequential_execution(num_students):
    left = {}
    for kind in ("sequential", "parallel"):
        branches, inputs = layers(num_students), leaves(num_students)
        results = step(make_executor(kind, num_students, DEVICE), branches, inputs)
        left[kind] = [*results, *(x.grad for x in inputs), *(p.grad for p in branches.parameters())]
    for a, b in zip(*left.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_resnet_family_equals_sequential_execution():
    torch.manual_seed(0)
    family = build_ensemble("resnet20", 5, 10).to(DEVICE, memory_format=torch.channels_last)
    shared = torch.randn(32, 16, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
    left = {}
    for kind in ("sequential", "parallel"):
        branches = copy.deepcopy(family.branches)
        inputs = [shared.detach().requires_grad_() for _ in branches]
        executor = make_executor(kind, 5, DEVICE)
        outputs = executor.forward(branches, inputs)
        executor.backward([[logits] for logits, _ in outputs], [[torch.ones_like(logits)] for logits, _ in outputs])
        left[kind] = (
            [logits for logits, _ in outputs] + [x.grad for x in inputs] + [p.grad for p in branches.parameters()]
        )
    for ours, theirs in zip(left["parallel"], left["sequential"], strict=True):
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm() + 1e-4  # convolutions may use TF32


def test_memory_is_not_reused_too_early_when_the_caller_has_its_own_stream():
    executor, caller = parallel(4), torch.cuda.Stream()

    def branch(x):
        torch.cuda._sleep(CYCLES // 50)
        temporary = x * 2
        return temporary + 1

    with torch.cuda.stream(caller):
        wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
        for i in range(20):
            torch.cuda._sleep(CYCLES // 50)
            inputs = [torch.full((1 << 18,), float(i + j), device=DEVICE) for j in range(4)]
            results = executor.forward([branch] * 4, inputs)
            del inputs
            torch.full((4, 1 << 18), float("nan"), device=DEVICE)  # reuses freed memory if that is allowed
            for j, result in enumerate(results):
                wrong += (result != 2 * (i + j) + 1).sum()
            del result, results
            executor.forward([lambda _: torch.full((1 << 18,), float("nan"), device=DEVICE)] * 4, [None] * 4)
        assert wrong.item() == 0


def test_memory_of_a_result_is_not_reused_before_the_caller_has_read_it():
    executor, caller = parallel(2), torch.cuda.Stream()
    torch.ones(2, device=DEVICE).sum().item()  # loads the kernels now, which may take longer than the sleep below
    with torch.cuda.stream(caller):
        first, second = executor.forward([lambda x: x + 1] * 2, [torch.ones(1 << 20, device=DEVICE)] * 2)
        torch.cuda._sleep(CYCLES)
        total = first.sum() + second.sum()
        address = first.data_ptr()
        del first, second
        # The caller's stream still sleeps, so the memory must not be given to another student on that stream.
        (again, _) = executor.forward([lambda _: torch.empty(1 << 20, device=DEVICE)] * 2, [None] * 2)
        assert again.data_ptr() != address
        assert total.item() == 4 * (1 << 20)


def test_forward_and_backward_do_not_synchronise():
    executor, branches, inputs = parallel(3), layers(3), leaves(3)
    step(executor, branches, inputs)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(CYCLES)
        done = torch.cuda.Event()
        step(executor, branches, inputs)
        done.record()
        assert not done.query()  # the sleeping kernel is still running
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_forward_and_backward_can_be_captured_and_replayed():
    executor, branches, inputs = parallel(3), layers(3), leaves(3)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(executor, branches, inputs)
    torch.cuda.current_stream().wait_stream(side)
    for tensor in (*branches.parameters(), *inputs):
        tensor.grad = None

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        results = step(executor, branches, inputs)
    captured = [*results, *(x.grad for x in inputs), *(p.grad for p in branches.parameters())]

    for seed in (1, 2):
        new, twin = leaves(3, seed), copy.deepcopy(branches)
        with torch.no_grad():
            for x, value in zip(inputs, new, strict=True):
                x.copy_(value)
        graph.replay()
        twin.zero_grad()
        expected = step(make_executor("sequential", 3, DEVICE), twin, new)
        expected += [*(x.grad for x in new), *(p.grad for p in twin.parameters())]
        for a, b in zip(captured, expected, strict=True):
            torch.testing.assert_close(a, b)


def failing(x):
    raise ValueError("not today")


def test_the_executor_works_after_an_error():
    executor, inputs = parallel(3), leaves(3)
    with pytest.raises(StudentError, match="^student 2: ValueError: not today$"):
        executor.forward([torch.exp, failing, torch.exp], inputs)
    for x, result in zip(inputs, executor.forward([torch.exp] * 3, inputs), strict=True):
        assert torch.equal(result, x.exp())


def test_streams_are_joined_after_an_error_during_capture():
    executor, inputs, graph = parallel(3), leaves(3), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(StudentError):
            executor.forward([torch.exp, failing, torch.exp], inputs)
        with torch.no_grad():
            results = executor.forward([torch.exp] * 3, inputs)
    graph.replay()
    assert all(torch.equal(r, x.exp()) for r, x in zip(results, inputs, strict=True))


def test_out_of_memory_in_a_student_keeps_the_error_of_torch():
    executor = parallel(2)
    with pytest.raises(StudentError, match="^student 2: OutOfMemoryError: ") as caught:
        executor.forward([lambda x: x, lambda _: torch.empty(1 << 48, device=DEVICE)], leaves(2))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
