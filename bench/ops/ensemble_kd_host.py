"""Time of the host in one call of the loss on CUDA. It needs no GPU; :mod:`bench.stub_cuda` stands in for one.

    python -m bench.stub_cuda bench.ops.ensemble_kd_host [--json FILE] [--size 128x100] [--seconds 40]

"prepared" is a call like earlier ones (oekd_fast/losses/prepared.py), "usual" is the same call without that. The parts
of the usual call follow. "autograd of an empty node" and "autograd of a bare node" have the inputs, outputs and
gradients of the loss and compute nothing (empty_node.cpp, compiled by this command): what PyTorch adds to any such
loss. Left out are the driver's launch and the allocator of CUDA, whose place a simpler cache of blocks takes.

Times are those of the wall and, as "cpu_milliseconds", what all threads of the process compute. Calls with a backward
pass are also measured "in one thread": ``torch.autograd.set_multithreading_enabled(False)``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.common.machine import machine
from oekd_fast.losses import prepared
from oekd_fast.losses.backends import choose_backend
from oekd_fast.losses.calls import EnsembleKDCall, KDOptions
from oekd_fast.losses.schemas import prepared_launches, triton_kernels

from .. import result_file
from ..measure import Timing, interleave
from ..stub_cuda.install import launches
from .autograd_floor import load_empty_nodes
from .ensemble_kd import STUDENTS
from .variants import with_backward

FORMS = {"value_and_grad": 1, "forward_and_backward": 2}  # the launches of a call
CLOCKS = {"milliseconds": time.perf_counter, "cpu_milliseconds": time.process_time}
ONE_THREAD = ("forward_and_backward, prepared", "autograd of an empty node", "autograd of a bare node")


def forms(rows: int, classes: int) -> dict[str, Callable[[], object]]:
    """Return the calls of the loss by the names in `FORMS`."""
    logits = [torch.empty(rows, classes, device="cuda") for _ in range(STUDENTS)]
    leaves = [torch.empty_like(z, requires_grad=True) for z in logits]
    target = torch.empty(rows, dtype=torch.int64, device="cuda")
    return {
        "value_and_grad": lambda: ensemble_kd_value_and_grad(logits, target),
        "forward_and_backward": with_backward(lambda: ensemble_kd_loss(leaves, target).loss, leaves),
    }


def usual(call: Callable[[], object]) -> Callable[[], None]:
    """Return `call` without prepared launches."""

    def unprepared() -> None:
        on_cuda, prepared.on_cuda = prepared.on_cuda, lambda: None
        call()
        prepared.on_cuda = on_cuda

    return unprepared


def empty_losses(rows: int, classes: int, nodes: SimpleNamespace) -> dict[str, Callable[[], object]]:
    """Return forward and backward of the nodes of `load_empty_nodes`."""
    leaves = [torch.empty(rows, classes, device="cuda", requires_grad=True) for _ in range(STUDENTS)]
    return {
        "autograd of an empty node": with_backward(lambda: nodes.empty_node(leaves), leaves),
        "autograd of a bare node": with_backward(lambda: nodes.bare_node(leaves), leaves),
    }


def parts(rows: int, classes: int) -> dict[str, Callable[[], object]]:
    """Return the parts of the usual call of value_and_grad, and the launch of the prepared one."""
    logits = [torch.empty(rows, classes, device="cuda") for _ in range(STUDENTS)]
    target = torch.empty(rows, dtype=torch.int64, device="cuda")
    call = EnsembleKDCall.of(logits, target, KDOptions())
    kwargs = call.op_kwargs()
    problem = triton_kernels().Problem(logits, **kwargs)
    recipe = prepared_launches().value_and_grad(problem)
    launch = recipe.launch.prepare(torch.cuda.current_stream().cuda_stream)
    arguments = list(recipe.launch.arguments[name] for name in recipe.launch.kernel.arg_names)

    def addresses(value):
        if isinstance(value, tuple):
            return tuple(map(addresses, value))
        return value.data_ptr() if isinstance(value, torch.Tensor) else value

    arguments = [addresses(argument) for argument in arguments]

    def plan_and_allocate():
        grads = [torch.empty_like(z) for z in logits]
        return triton_kernels().loss_launch(problem, grads)

    return {
        "options and checks": lambda: EnsembleKDCall.of(logits, target, KDOptions()),
        "choice of the backend": lambda: choose_backend("auto", call),
        "arguments of the op": call.op_kwargs,
        "the op": lambda: torch.ops.oekd_fast.ensemble_kd_value_and_grad(logits, **kwargs),
        "of it: plan and allocations": plan_and_allocate,
        "of it: Triton's binder and launch": lambda: recipe.launch.run(problem.device),
        "launch alone, prepared": lambda: launch(*arguments),
    }


def measure(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, dict[str, Timing]]:
    """Return the times of all calls by the names in `CLOCKS`, and of those in `ONE_THREAD` once more, in one thread."""
    measured = {}
    for name, clock in CLOCKS.items():
        measured[name] = interleave(calls, seconds / 4, clock=clock)
        with torch.autograd.set_multithreading_enabled(False):
            alone = interleave(calls, seconds / 4, clock=clock)
        measured[name] |= {f"{call}, in one thread": alone[call] for call in ONE_THREAD}
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--size", default="128x100", metavar="BxC", help="rows x classes")
    parser.add_argument("--seconds", type=float, default=40.0, help="duration of the measurement")
    arguments = parser.parse_args()

    where = machine()
    print(result_file.describe(where), flush=True)
    rows, classes = map(int, arguments.size.split("x"))
    calls = forms(rows, classes)
    for name, call in calls.items():
        call(), call()  # the second call prepares the launches
        before = launches()
        call()
        if launches() - before != FORMS[name]:
            raise RuntimeError(f"{name}: expected {FORMS[name]} launches, got {launches() - before}")
    variants = {f"{name}, prepared": call for name, call in calls.items()}
    variants |= {f"{name}, usual": usual(call) for name, call in calls.items()}
    with tempfile.TemporaryDirectory() as folder:
        variants |= parts(rows, classes) | empty_losses(rows, classes, load_empty_nodes(folder))
        measured = measure(variants, arguments.seconds)
    for name, timing in measured["milliseconds"].items():
        computed = in_microseconds(measured["cpu_milliseconds"][name])
        print(f"{name:<46} {in_microseconds(timing)} us, computing {computed} us")
    if arguments.json:
        what = "time of the host in a call of ensemble_kd on CUDA, S = 5, fp32, without the driver's launch"
        times = {name: {call: t.as_dict() for call, t in timings.items()} for name, timings in measured.items()}
        result = {"rows": rows, "classes": classes, **times}
        result_file.write(arguments.json, result_file.report(what, where, [result]))


def in_microseconds(timing: Timing) -> str:
    """Return the median and both quartiles in microseconds."""
    return f"{timing.median * 1e3:.1f} [{timing.lower * 1e3:.1f}, {timing.upper * 1e3:.1f}]"


if __name__ == "__main__":
    main()
