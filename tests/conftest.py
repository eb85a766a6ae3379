"""What the tests of the losses share: the implementations that are there, and how to call them alike."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor

from oekd_fast import EnsembleKDOutput, ensemble_kd_value_and_grad

try:
    ISAS = tuple(import_module("oekd_fast._native").isa_names())
except ImportError:
    ISAS = ()

BACKENDS = ("reference", "native") if ISAS else ("reference",)
OP_DEFAULTS = {
    "temperature": 2.0,
    "ce_weight": 0.7,
    "kd_weight": 0.15,
    "label_smoothing": 0.0,
    "ignore_index": -100,
}


def op_arguments(
    target: Tensor | None = None, ensemble_weights: Tensor | None = None, reduction: str = "mean", **options
) -> tuple:
    """Positional arguments of the ops after the logits, from the keywords of the public functions."""
    return target, ensemble_weights, *{**OP_DEFAULTS, **options}.values(), reduction == "mean"


def _isa(isa: str) -> Callable:
    def value_and_grad(logits, target, *, grad_scale=None, out=None, **options):
        arguments = op_arguments(target, **options)
        if out is None:
            *statistics, grads = torch.ops.oekd_fast.ensemble_kd_value_and_grad(
                logits, *arguments, grad_scale=grad_scale, isa=isa
            )
            return EnsembleKDOutput(*statistics), tuple(grads)
        statistics = torch.ops.oekd_fast.ensemble_kd_value_and_grad_out(
            logits, *arguments, grad_scale=grad_scale, out=out, isa=isa
        )
        return EnsembleKDOutput(*statistics), tuple(out)

    return value_and_grad


def _backend(backend: str) -> Callable:
    def value_and_grad(logits, target, **options):
        return ensemble_kd_value_and_grad(logits, target, backend=backend, **options)

    return value_and_grad


# Each takes the arguments of ensemble_kd_value_and_grad. The ops do not take one stacked tensor.
IMPLEMENTATIONS = {name: _backend(name) for name in BACKENDS} | {f"native-{isa}": _isa(isa) for isa in ISAS}


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
        pytest.skip("the native extension was not built")
    return IMPLEMENTATIONS[request.param]


@pytest.fixture
def threads():
    """Sets the number of threads; the old one comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads):
    """Tiny problems on few, busy cores: threads that wait for each other cost seconds."""
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
    """Random logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = [scale * torch.randn(rows, classes, generator=generator) for _ in range(students)]
    return [z.to(dtype) for z in logits], torch.randint(classes, (rows,), generator=generator)
