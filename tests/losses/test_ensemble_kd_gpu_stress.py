"""The ensemble loss on a GPU under stress: poisoned memory, random delays in the programs, two streams, graph replays.

Every call must return the bits of the undisturbed one. tests/kernels/test_stress.py tests the disturbances themselves.
"""

import pytest
import torch

from ..support import gpu_calls
from ..support.gpu_calls import SIZES, same

pytest.importorskip("triton", reason="Triton is not installed")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LONGEST = 300  # loads of a delay, each of less than a microsecond
ROUNDS = 20


def made(size, dtype=torch.bfloat16, seed=0):
    """The arguments of an op that also computes the gradient of the ensemble's weights."""
    from ..support.ensemble_kd_launches import problem

    return problem(*gpu_calls.problem(*size, dtype, seed), detach_ensemble=False)


def delays(seed):
    from ..support.stress import random_delays

    return random_delays(LONGEST, seed, torch.device(gpu_calls.DEVICE))


def call(given, delays=None):
    from ..support.stress import loss_and_gradients, poisoned_memory

    with poisoned_memory():
        return loss_and_gradients(given, delays=delays)


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_delayed_programs_return_the_same_bits(size, dtype):
    given = made(size, dtype)
    expected = call(given)
    assert all(tensor.isfinite().all() for tensor in expected)
    for seed in range(ROUNDS):
        same(call(given, delays(seed)), expected)


@SIZES
def test_two_streams_return_the_same_bits(size):
    streams = [torch.cuda.Stream() for _ in range(2)]
    given = [made(size, seed=seed) for seed in range(2)]
    expected = [call(problem) for problem in given]
    of_rounds = [[delays(2 * seed + stream) for stream in range(2)] for seed in range(ROUNDS)]
    torch.cuda.synchronize()
    for of_streams in of_rounds:
        found = []
        for stream, problem, of_stream in zip(streams, given, of_streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(call(problem, of_stream))
        torch.cuda.synchronize()
        for actual, wanted in zip(found, expected, strict=True):
            same(actual, wanted)


@SIZES
def test_replays_of_a_graph_return_the_same_bits(size):
    """Each replay poisons the memory again, and reads other delays."""
    given, of_replay = made(size), delays(0)
    expected = call(given)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(given, of_replay)  # compiles the kernels with delays
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call(given, of_replay)
    for seed in range(ROUNDS):
        of_replay.copy_(delays(seed))
        graph.replay()
        same(found, expected)
