"""What the tests of executors share: how they are made and called, and students that meet or fail."""

import threading

import pytest
import torch

from oekd_fast.parallel.executor import make_executor

from ..conftest import ISAS

native = pytest.mark.skipif(not ISAS, reason="the native extension was not built")
SECONDS = 60  # no test needs them: what takes longer hangs


def parallel(num_students=2, deterministic=True):
    """A pool of two workers (deterministic: in any case); nothing is left to learn about functions."""
    executor = make_executor("parallel", num_students, "cpu", deterministic=deterministic)
    executor.forward([lambda _: None] * num_students, [None] * num_students)
    return executor


def finishes(*calls):
    """Run each call in a Python thread of its own, and wait for all; what they raise or return."""
    came = [None] * len(calls)

    def run(i):
        try:
            came[i] = calls[i]()
        except BaseException as error:
            came[i] = error

    started = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(SECONDS)
        assert not thread.is_alive(), "hangs"
    return came


def raised_by(call):
    with pytest.raises(BaseException) as caught:  # noqa: B017, PT011 - the test looks at it
        call()
    return caught.value


class Meet(torch.autograd.Function):
    """The identity; backward waits until as many others are there as the barrier counts."""

    @staticmethod
    def forward(ctx, x, barrier):
        ctx.barrier = barrier
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.barrier.wait()
        return grad, None


class Fail(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise LookupError("no gradient today")


def fine(x):
    return x


def failing(x):
    raise ValueError(f"cannot take {x}")
