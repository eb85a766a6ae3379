"""The ensemble loss on a GPU: determinism, CUDA graphs, streams, synchronisation, launches, memory."""

import pytest
import torch

from bench.gpu.profile import kernels_of, peak_extra_bytes, profiler_sees_kernels
from oekd_fast import ensemble_kd_loss

from ..support.gpu_calls import DEVICE, FORMS, REGIMES, SIZES, by_autograd, problem, same, scalar, value_and_grad

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MEGABYTE = 1 << 20


# -- the same bits, whatever was in memory before and however programs were scheduled


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@FORMS
def test_many_runs_give_the_same_bits(size, dtype, form):
    logits, target = problem(*size, dtype)
    expected = form(logits, target)
    for _ in range(20):
        same(form(logits, target), expected)


@SIZES
@FORMS
def test_nothing_uninitialised_is_read(size, form):
    logits, target = problem(*size)
    expected = form(logits, target)
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(1, device=DEVICE).isnan().all()
        same(form(logits, target), expected)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


# -- CUDA graphs


def capture(call):
    """The graph of a call, and what it returned."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


def refill(static, fresh):
    for old, new in zip((*static[0], static[1]), (*fresh[0], fresh[1]), strict=True):
        old.copy_(new)


@SIZES
@FORMS
def test_captured_in_a_graph_and_replayed_on_new_values(size, form):
    static = problem(*size)
    graph, out = capture(lambda: form(*static))
    for seed in (1, 2, 3):
        fresh = problem(*size, seed=seed)
        refill(static, fresh)
        graph.replay()
        same(out, form(*fresh))


@SIZES
@FORMS
@pytest.mark.parametrize("names", [("temperature",), ("temperature", "ce_weight", "kd_weight")], ids="+".join)
def test_values_changed_between_replays(size, form, names):
    logits, target = problem(*size)
    values = {name: scalar(0.5) for name in names}
    graph, out = capture(lambda: form(logits, target, **values))
    for number in (2.5, 2.0, 0.25):
        for value in values.values():
            value.fill_(number)
        graph.replay()
        same(out, form(logits, target, **{name: scalar(number) for name in names}))


@SIZES
def test_several_launches_in_one_graph_between_eager_calls(size):
    problems = [problem(*size, seed=seed) for seed in range(3)]
    expected = [form(*p) for p in problems for form in (value_and_grad, by_autograd)]
    graph, outs = capture(lambda: [form(*p) for p in problems for form in (value_and_grad, by_autograd)])
    for _ in range(5):
        graph.replay()
        eager = value_and_grad(*problems[1])  # right behind the replay
        graph.replay()
        same(eager, expected[2])
        for actual, right in zip(outs, expected, strict=True):
            same(actual, right)


@SIZES
def test_a_graph_beside_eager_calls_of_another_stream(size):
    static, other = problem(*size), problem(*size, seed=1)
    expected, expected_other = value_and_grad(*static), value_and_grad(*other)
    graph, out = capture(lambda: value_and_grad(*static))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    eager = []
    for _ in range(10):
        graph.replay()
        with torch.cuda.stream(stream):
            eager.append(value_and_grad(*other))
    torch.cuda.synchronize()
    same(out, expected)
    for actual in eager:
        same(actual, expected_other)


# -- streams


@SIZES
@FORMS
def test_runs_on_the_current_stream(size, form):
    logits, target = problem(*size)
    expected = form(logits, target)
    late = [torch.zeros_like(z) for z in logits]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what another stream ran meanwhile would see zeros
        refill((late, target.clone()), (logits, target))
        out = form(late, target)
    stream.synchronize()
    same(out, expected)


@SIZES
def test_two_streams_at_a_time_do_not_share_counters(size):
    problems = [problem(*size, seed=seed) for seed in range(2)]
    expected = [value_and_grad(*p) for p in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    outs = [[], []]
    torch.cuda.synchronize()
    for _ in range(20):
        for p, stream, out in zip(problems, streams, outs, strict=True):
            with torch.cuda.stream(stream):
                out.append(value_and_grad(*p))
    torch.cuda.synchronize()
    for out, right in zip(outs, expected, strict=True):
        for actual in out:
            same(actual, right)


@SIZES
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
def test_another_device_than_the_current_one(size):
    logits, target = problem(*size)
    expected = value_and_grad(logits, target) + by_autograd(logits, target)
    there = [z.to("cuda:1") for z in logits], target.to("cuda:1")
    actual = value_and_grad(*there) + by_autograd(*there)
    assert all(t.device.index == 1 for t in actual)
    same([t.to(DEVICE) for t in actual], expected)


# -- the host, the compiler, launches, memory


@SIZES
def test_nothing_waits_for_the_device(size):
    logits, target = problem(*size)
    scale, out = scalar(2.0), [torch.empty_like(z) for z in logits]

    def calls():
        for form in (value_and_grad, by_autograd):
            form(logits, target, temperature=scale, kd_weight=scale)
        value_and_grad(logits, target, grad_scale=scale, out=out)
        value_and_grad(logits, target)
        by_autograd(logits, target, scale)

    calls()
    torch.cuda.set_sync_debug_mode("error")
    try:
        calls()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@SIZES
def test_compiled_in_one_graph(size):
    torch.compiler.reset()
    logits, target = problem(*size)
    compiled = torch.compile(ensemble_kd_loss, fullgraph=True, dynamic=False)
    upstream = scalar(2.5)
    actual = by_autograd(logits, target, upstream, loss=compiled)
    same(actual, by_autograd(logits, target, upstream))
    actual = by_autograd(logits, target, upstream, loss=compiled, temperature=upstream)
    same(actual, by_autograd(logits, target, upstream, temperature=upstream))
    torch.compiler.reset()


@SIZES
def test_launches(size):
    if not profiler_sees_kernels():
        pytest.skip("the profiler sees no kernels on this machine")
    logits, target = problem(*size)
    leaves = [z.detach().requires_grad_() for z in logits]
    out, upstream = [torch.empty_like(z) for z in logits], scalar(2.5)

    def forward_and_backward():
        torch.autograd.grad(ensemble_kd_loss(leaves, target, backend="triton").loss, leaves, upstream)

    for call, launches in (
        (lambda: value_and_grad(logits, target), 1),
        (lambda: value_and_grad(logits, target, out=out), 1),
        (lambda: ensemble_kd_loss(logits, target, backend="triton"), 1),
        (forward_and_backward, 2),
    ):
        call()
        names = [kernel.name for kernel in kernels_of(call)]
        assert len(names) == launches, names


@pytest.mark.parametrize("size", [(8192, 100), (2048, 1000), (2048, 32000)], ids=REGIMES)
def test_memory_beside_the_gradients(size):
    from oekd_fast.kernels.ensemble_kd.plan import plan_ensemble_kd, power_of_2

    rows, classes = size
    logits, target = problem(1, classes)
    logits = [z.repeat(rows, 1) for z in logits]
    target = target.repeat(rows)
    plan = plan_ensemble_kd(len(logits), classes, 2)
    chunks = -(-classes // (plan.tiles * plan.block)) if plan.regime == "streamed" else 0
    statistics = rows * (1 + chunks) * 2 * power_of_2(len(logits) + 1) * 4 * 4
    gradients = len(logits) * rows * classes * 2
    out = [torch.empty_like(z) for z in logits]
    for call, allowed in (
        (lambda: value_and_grad(logits, target, out=out), 0),
        (lambda: value_and_grad(logits, target), gradients),
        (lambda: by_autograd(logits, target), gradients),
    ):
        call()
        extra = peak_extra_bytes(call)
        assert extra <= allowed + statistics + 8 * MEGABYTE, (extra, allowed, statistics)
