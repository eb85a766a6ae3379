"""The intermediate loss on a GPU: determinism, graphs, streams, synchronisation, torch.compile."""

import pytest
import torch

from oekd_fast import feature_kd_loss, feature_kd_value_and_grad

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

RESIDENT, TILED = (64, (51, 38, 25, 12), 8, 128), (342, (258, 202, 118, 62), 8, 16)
SIZES = pytest.mark.parametrize("size", [RESIDENT, TILED], ids=["resident", "tiled"])


def block(size, seed=0, dtype=torch.bfloat16):
    """Return student maps and the pseudo teacher's map in channels_last, weights and biases in float32."""
    teacher, students, side, batch = size
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device="cuda")

    maps = [
        normal(batch, channels, side, side).to(dtype).contiguous(memory_format=torch.channels_last)
        for channels in (*students, teacher)
    ]
    return maps[:-1], maps[-1], [normal(teacher, c) / c**0.5 for c in students], [normal(teacher) for _ in students]


def value_and_grad(arguments, **options):
    loss, *grads = feature_kd_value_and_grad(*arguments, backend="triton", **options)
    return [loss, *(grad for part in grads for grad in part)]


def by_autograd(arguments, loss_of=feature_kd_loss):
    maps, teacher, weights, biases = arguments
    leaves = [[t.detach().requires_grad_() for t in part] for part in (maps, weights, biases)]
    loss = loss_of(leaves[0], teacher, *leaves[1:])
    return [loss.detach(), *torch.autograd.grad(loss, sum(leaves, []))]


def same(came, expected):
    assert all(torch.equal(a, b) for a, b in zip(came, expected, strict=True))


@SIZES
def test_repeated_calls_give_the_same_bits(size):
    arguments = block(size)
    expected = value_and_grad(arguments)
    for _ in range(20):
        same(value_and_grad(arguments), expected)
        same(by_autograd(arguments)[1:], expected[1:])


@SIZES
@pytest.mark.parametrize("form", [value_and_grad, by_autograd])
def test_a_captured_graph_replays_on_new_values(size, form):
    arguments = block(size)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        form(arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = form(arguments)
    for seed in (1, 2):
        fresh = block(size, seed)
        for static, new in zip(_flat(arguments), _flat(fresh), strict=True):
            static.copy_(new)
        graph.replay()
        same(out, form(fresh))


def _flat(arguments):
    maps, teacher, weights, biases = arguments
    return [*maps, teacher, *weights, *biases]


@SIZES
def test_kernels_run_on_the_current_stream(size):
    arguments = block(size)
    expected = value_and_grad(arguments)
    stream = torch.cuda.Stream()
    late = [[torch.zeros_like(x) for x in arguments[0]], *arguments[1:]]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would read zeros
        for static, new in zip(late[0], arguments[0], strict=True):
            static.copy_(new)
        out = value_and_grad(late)
    stream.synchronize()
    same(out, expected)


@SIZES
def test_two_concurrent_streams_do_not_share_counters(size):
    arguments = block(size)
    expected = value_and_grad(arguments)
    streams = [torch.cuda.Stream() for _ in range(2)]
    outs = []
    torch.cuda.synchronize()
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                outs.append(value_and_grad(arguments))
    torch.cuda.synchronize()
    for out in outs:
        same(out, expected)


@SIZES
def test_no_call_synchronises_with_the_host(size):
    arguments = block(size)
    scale = torch.tensor(2.0, device="cuda")
    by_autograd(arguments), value_and_grad(arguments, grad_scale=scale)
    torch.cuda.set_sync_debug_mode("error")
    try:
        by_autograd(arguments), value_and_grad(arguments, grad_scale=scale)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@SIZES
def test_auto_uses_the_kernels(size):
    same([feature_kd_loss(*block(size))], [feature_kd_loss(*block(size), backend="triton")])


@SIZES
def test_torch_compile_makes_one_graph(size):
    torch.compiler.reset()
    arguments = block(size)
    compiled = torch.compile(feature_kd_loss, fullgraph=True, dynamic=False)
    same(by_autograd(arguments, compiled), by_autograd(arguments))
    torch.compiler.reset()


def test_autocast_changes_the_result_by_rounding_only():
    maps, teacher, weights, biases = block(RESIDENT)
    with torch.autocast("cuda", torch.bfloat16):
        ours = feature_kd_loss(maps, teacher, weights, biases, backend="triton")
        reference = feature_kd_loss(maps, teacher, weights, biases, backend="reference")
    torch.testing.assert_close(ours, reference, rtol=1e-2, atol=0)


def test_auto_uses_the_reference_for_more_channels_than_the_kernels_support():
    arguments = block((1024, (820,), 4, 2))
    assert torch.equal(feature_kd_loss(*_as(arguments, torch.float32)), feature_kd_loss(
        *_as(arguments, torch.float32), backend="reference"
    ))  # fmt: skip


def _as(arguments, dtype):
    maps, teacher, *adapters = arguments
    return [x.to(dtype) for x in maps], teacher.to(dtype), *adapters
