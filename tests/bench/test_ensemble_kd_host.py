"""The measurement of the host's time in a call of the loss."""

import torch

from bench.ops.ensemble_kd_host import CLOCKS, ONE_THREAD, measure


def test_calls_are_measured_by_both_clocks_and_some_in_one_thread():
    multithreading = set()
    calls = {name: lambda: multithreading.add(torch.autograd.is_multithreading_enabled()) for name in ONE_THREAD}
    measured = measure(calls | {"value": lambda: None}, 0.0)
    assert measured.keys() == CLOCKS.keys() and multithreading == {True, False}
    for timings in measured.values():
        assert timings.keys() == {"value", *ONE_THREAD, *(f"{name}, in one thread" for name in ONE_THREAD)}
    assert torch.autograd.is_multithreading_enabled()
