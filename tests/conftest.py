"""Fixtures and helpers of all tests: the available implementations of the loss, which are called alike."""

from __future__ import annotations

import gc
import os
import signal
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from itertools import combinations

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    # Triton reads this when a kernel is defined, that is at the first import of oekd_fast.kernels.
    os.environ["TRITON_INTERPRET"] = "1"
    # torch.compile would start processes for Triton's compiler, each of which imports torch.
    os.environ["TORCH_WARM_POOL"] = "0"

from oekd_fast import EnsembleKDOutput, ensemble_kd_value_and_grad, native
from oekd_fast.losses import native_ops

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # The workers share the cores, and so do the processes that tests start.
    torch.set_num_threads(max(1, torch.get_num_threads() // int(workers)))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    # Workers ignore SIGINT, which some tests send to themselves or to a process that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Each full collection looks at a million objects of torch, and those of the compiler make it happen often: with the
# thresholds of Python, a tenth of the suite's time.
gc.set_threshold(2_000, 20, 50)

with torch.device("meta"):
    torch.empty(0)  # the first use records the factory functions for good, so it must come before any test replaces one

ISAS = native.isa_names()
needs_native = pytest.mark.skipif(not ISAS, reason="the native kernels were not built")
# Also for tests of the autograd kernel of the loss, which comes with the executor.
needs_executor = pytest.mark.skipif(
    native.why_no_executor() is not None, reason="no executor was built for this torch and Python"
)

TRITON = find_spec("triton") is not None
if TRITON and "TRITON_INTERPRET" in os.environ:
    from .support import interpreter

    interpreter.install()

INTERPRETED = TRITON and not torch.cuda.is_available()
# Backends that take CPU tensors.
BACKENDS = ("reference", *(("native",) if ISAS else ()), *(("triton",) if INTERPRETED else ()))
OP_DEFAULTS = {
    "temperature": 2.0,
    "ce_weight": 0.7,
    "kd_weight": 0.15,
    "label_smoothing": 0.0,
    "ignore_index": -100,
    "detach_ensemble": True,
}


def op_kwargs(*, reduction: str = "mean", mixing_space: str = "logits", divergence: str = "forward", **options) -> dict:
    """Keyword arguments of the ops from keywords of the public functions, without their checks."""
    teachers, num_items = options.get("teacher_logits"), options.get("num_items")
    if isinstance(teachers, Tensor):
        options["teacher_logits"] = teachers.unbind() if teachers.dim() == 3 else [teachers]
    if num_items is not None:
        options["num_items"] = torch.as_tensor(num_items)
    if "weight" in options:
        options["class_weights"] = options.pop("weight")
    return {
        "ensemble_weights": None,
        **OP_DEFAULTS,
        "mean": reduction == "mean",
        "per_row": reduction == "none",
        "mix_probabilities": mixing_space == "probabilities",
        "divergence": ("forward", "reverse", "js", "decoupled").index(divergence),
        **options,
    }


def _isa(isa: str) -> Callable:
    def value_and_grad(logits, target, *, out=None, weights_grad=None, **options):
        kwargs = op_kwargs(**options, isa=isa)
        if out is None and weights_grad is None:
            *statistics, grads = native_ops.ensemble_kd_value_and_grad(logits, target, **kwargs)
            return EnsembleKDOutput(*statistics), tuple(grads)
        if out is None:
            out = [torch.empty_like(z) for z in logits]
        statistics = native_ops.ensemble_kd_value_and_grad_out(
            logits, target, **kwargs, out=out, weights_grad=weights_grad
        )
        return EnsembleKDOutput(*statistics), tuple(out)

    return value_and_grad


def _backend(backend: str) -> Callable:
    def value_and_grad(logits, target, **options):
        return ensemble_kd_value_and_grad(logits, target, backend=backend, **options)

    return value_and_grad


def _triton() -> Callable:
    """Call backend="triton", interpreted on the CPU, or on a GPU with copies of all tensors in the same strides."""
    if not torch.cuda.is_available():
        return _backend("triton")

    def on_gpu(value):
        if isinstance(value, Tensor):
            storage = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
            return storage.cuda().as_strided(value.shape, value.stride(), value.storage_offset())
        return [on_gpu(item) for item in value] if isinstance(value, list | tuple) else value

    def value_and_grad(logits, target, *, out=None, **options):
        buffers = on_gpu(out)
        output, grads = ensemble_kd_value_and_grad(
            on_gpu(logits), on_gpu(target), backend="triton", out=buffers, **{k: on_gpu(v) for k, v in options.items()}
        )
        output = EnsembleKDOutput(*(t.cpu() for t in output))
        if out is None:
            return output, tuple(grad.cpu() for grad in grads)
        for buffer, written in zip(out, buffers, strict=True):
            buffer.copy_(written)
        return output, tuple(out)

    return value_and_grad


# Each takes the arguments of ensemble_kd_value_and_grad. The ops do not take stacked logits.
IMPLEMENTATIONS = {name: _backend(name) for name in BACKENDS if name != "triton"} | {
    f"native-{isa}": _isa(isa) for isa in ISAS
}
if TRITON:
    IMPLEMENTATIONS["triton"] = _triton()


def covered_by_others(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the cases of a test that can be left out while each pair of values of two parameters still occurs."""
    given = {item: sorted((name, repr(value)) for name, value in item.callspec.params.items()) for item in items}
    pairs = {item: set(combinations(values, 2)) for item, values in given.items()}
    missing, kept = set().union(*pairs.values()), set()
    while missing:
        best = max(items, key=lambda item: len(pairs[item] & missing))
        missing -= pairs[best]
        kept.add(best)
    return [item for item in items if pairs[item] and item not in kept]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="run each test with its first parameters only, without slow tests and interpreted kernels",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that run kernels in Triton's interpreter, and select the tests to run.

    Tests of the kernels (tests/kernels) run all their cases in the interpreter. Tests of all implementations run there
    in bf16, since fp16 differs in the conversion of numbers alone, and with each pair of values of two parameters.
    """
    again, interpreted = [], defaultdict(list)
    for item in items:
        parameters = item.callspec.id.split("-") if hasattr(item, "callspec") else []
        of_kernels = "kernels" in item.path.parts
        if INTERPRETED and (of_kernels or "triton" in parameters):
            item.add_marker("interpreter")
            if not of_kernels and "fp16" in parameters:
                again.append(item)
            elif not of_kernels:
                interpreted[item.nodeid.split("[")[0]].append(item)
    for cases in interpreted.values():
        again += covered_by_others(cases)
    if again:
        config.hook.pytest_deselected(items=again)
        items[:] = [item for item in items if item not in set(again)]
    if not config.getoption("--quick"):
        return
    first = {}
    for item in items:
        if not (item.get_closest_marker("slow") or item.get_closest_marker("interpreter")):
            first.setdefault(item.nodeid.split("[")[0], item)
    config.hook.pytest_deselected(items=[item for item in items if item not in set(first.values())])
    items[:] = first.values()


def rows_of(value_and_grad: Callable, rows: int, classes: int = 1) -> int:
    """Limit the rows for the interpreter, which takes 10 ms for a row, and a second for a long one."""
    return max(2, min(rows, 24, 40000 // classes)) if value_and_grad is IMPLEMENTATIONS.get("triton") else rows


def fewer_of(value_and_grad: Callable, logits: list[Tensor], target: Tensor) -> tuple[list[Tensor], Tensor]:
    """Keep one row of two students for the interpreter if rows are long: it takes a second for such a row."""
    if value_and_grad is not IMPLEMENTATIONS.get("triton") or logits[0].shape[1] < 10_000:
        return logits, target
    return [z[:1] for z in logits[:2]], target[:1]


def order_depends_on_layout(value_and_grad: Callable) -> bool:
    """Whether strides and alignment change the order of sums."""
    return value_and_grad is IMPLEMENTATIONS.get("triton")


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    return request.param


@pytest.fixture(params=IMPLEMENTATIONS)
def value_and_grad(request) -> Callable:
    """The public function on each backend, then the op on each instruction set."""
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(params=[name for name in IMPLEMENTATIONS if name != "reference"] or ["none"])
def compiled_value_and_grad(request) -> Callable:
    if request.param == "none":
        pytest.skip("the native kernels were not built")
    return IMPLEMENTATIONS[request.param]


@pytest.fixture
def threads():
    """Return a function that sets the number of threads. The old number is restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads):
    """Use one thread: on busy cores, threads that wait for each other cost seconds in tiny problems."""
    threads(1)


def batch(
    students: int = 5,
    rows: int = 7,
    classes: int = 13,
    *,
    dtype: torch.dtype = torch.float32,
    scale: float = 3.0,
    seed: int = 0,
) -> tuple[list[Tensor], Tensor]:
    """Make random logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = [scale * torch.randn(rows, classes, generator=generator) for _ in range(students)]
    return [z.to(dtype) for z in logits], torch.randint(classes, (rows,), generator=generator)


@pytest.fixture(scope="module")
def smallest_model():
    """Prepare this process for forks that train the model of `support.forked_runs`."""
    from .support.forked_runs import smallest_runs

    with smallest_runs():
        yield
