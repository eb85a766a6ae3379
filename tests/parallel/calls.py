"""Helpers shared by the executor tests: making executors, calling them, and students that wait or fail."""

import threading

import pytest
import torch

from oekd_fast.parallel.executor import make_executor

TIMEOUT = 120  # seconds after which a test counts as hanging; far more than any needs on a loaded machine


def parallel(num_students=2, deterministic=True):
    """Return an executor with two workers for functions, which has already learned that they draw no random numbers."""
    executor = make_executor("parallel", num_students, "cpu", deterministic=deterministic)
    executor.forward([lambda _: None] * num_students, [None] * num_students)
    return executor


def finishes(*calls):
    """Run each call in its own Python thread and return what each returned or raised."""
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
        thread.join(TIMEOUT)
        assert not thread.is_alive(), f"still running after {TIMEOUT} s"
    return came


def raised_by(call):
    with pytest.raises(BaseException) as caught:  # noqa: B017, PT011 - the caller checks it
        call()
    return caught.value


class Meet(torch.autograd.Function):
    """The identity; its backward waits at the barrier."""

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
