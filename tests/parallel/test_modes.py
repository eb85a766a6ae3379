"""Students run with the caller's modes and draw the random numbers of sequential execution."""

import threading
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from oekd_fast.parallel.executor import make_executor

from ..conftest import needs_executor
from .calls import TIMEOUT, finishes, parallel


def modes(_=None):
    torch.autocast_increment_nesting()
    return (
        torch.autocast_decrement_nesting(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


@needs_executor
@pytest.mark.parametrize(
    "context",
    [
        nullcontext,
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.float16),
        lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    ],
)
def test_every_student_runs_with_the_callers_modes(context):
    executor = parallel()
    with context():
        expected = modes()
        for _ in range(2):
            assert executor.forward([modes] * 2, [0, 0]) == [expected] * 2
    assert executor.forward([modes] * 2, [0, 0]) == [modes()] * 2


@needs_executor
def test_dispatch_modes_and_hooks_apply_inside_students():
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    executor, names, packed = parallel(), [], []
    inputs = [torch.ones(2, requires_grad=True) for _ in range(2)]
    with Names(), torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        executor.forward([lambda x: x.exp()] * 2, inputs)
    assert names.count("aten.exp.default") == 2 and len(packed) == 2


@needs_executor
def test_autocast_inside_a_student_keeps_the_cache_of_casts():
    weight, casts = nn.Parameter(torch.ones(4, 4)), []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            casts.append(func.overloadpacket is torch.ops.aten._to_copy and args[0].shape == (4, 4))
            return func(*args, **(kwargs or {}))

    def branch(x):
        with torch.autocast("cpu", torch.bfloat16):
            pass
        return x @ weight

    executor = parallel()
    with torch.autocast("cpu", torch.bfloat16), Casts():
        executor.forward([branch] * 2, [torch.ones(1, 4)] * 2)
        executor.forward([branch] * 2, [torch.ones(1, 4)] * 2)
    assert sum(casts) == 1


def dropouts():
    torch.manual_seed(0)
    noisy = [nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6)) for _ in range(2)]
    plain = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(2)]
    return nn.ModuleList([plain[0], noisy[0], plain[1], noisy[1]])


@needs_executor
def test_random_numbers_equal_those_of_sequential_execution():
    results = {}
    for kind in ("sequential", "parallel"):
        branches, executor = dropouts(), make_executor(kind, 4, "cpu", deterministic=True)
        torch.manual_seed(1)
        results[kind] = []
        for training in (True, True, False, True, False, True):
            results[kind] += executor.forward(branches.train(training), [torch.ones(3, 6)] * 4)
            results[kind].append(torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(*results.values(), strict=True))


@needs_executor
def test_only_students_that_draw_run_sequentially():
    barrier = threading.Barrier(2, timeout=TIMEOUT)

    def thread(module, args, output):
        if meeting and isinstance(module[1], nn.ReLU):
            barrier.wait()
        return threading.get_ident()

    branches, executor, meeting = dropouts(), make_executor("parallel", 4, "cpu", deterministic=True), False
    for branch in branches:
        branch.register_forward_hook(thread)
    assert len(set(executor.forward(branches, [torch.ones(3, 6)] * 4))) == 1
    executor.forward(branches.eval(), [torch.ones(3, 6)] * 4)
    meeting = True  # the two students that do not draw must run at the same time
    first, second, third, fourth = executor.forward(branches.train(), [torch.ones(3, 6)] * 4)
    assert second == fourth and first != third


@needs_executor
def test_a_student_that_starts_to_draw_is_detected_with_a_warning():
    executor = parallel()
    draws = [lambda x: torch.rand(x), lambda x: torch.rand(x)]
    with pytest.warns(UserWarning, match="by code other than the students known to draw random numbers") as caught:
        executor.forward(draws, [2, 3])
        state = torch.get_rng_state()
        learning, known = executor.forward(draws, [2, 3]), executor.forward(draws, [2, 3])
        executor.forward([lambda x: x, lambda x: torch.rand(x)], [2, 3])
    assert len(caught) == 1 and caught[0].filename == __file__
    torch.set_rng_state(state)
    expected = [torch.rand(n) for n in (2, 3, 2, 3)]
    assert all(torch.equal(a, b) for a, b in zip([*learning, *known], expected, strict=True))

    with pytest.warns(UserWarning) as caught:  # one warning for each executor
        executor = parallel()
        for _ in range(2):
            executor.forward([lambda x: x] * 2, [2, 3])
            executor.forward(draws, [2, 3])
    assert len(caught) == 1


@needs_executor
def test_overlapping_calls_may_both_detect_a_student_that_starts_to_draw():
    executor = parallel()
    barrier = threading.Barrier(2, timeout=TIMEOUT)  # both calls run before either ends

    def branch(x):
        barrier.wait()
        return torch.rand(x)

    def call():
        return executor.forward([branch, lambda x: x], [2, 3])[1]

    with pytest.warns(UserWarning, match="known to draw"):
        assert finishes(call, call) == [3, 3]
