"""Compare the CPU kernels of the loss with float64 on random calls, each of which a seed makes again.

    python -m tests.campaigns.fuzz_loss [--calls 100000] [--seed 0] [--output FILE]
    python -m tests.campaigns.fuzz_loss --chunk 37         # calls 37000 to 37999 of the same series
    python -m tests.campaigns.fuzz_loss --call 37123       # one call, and what is wrong with it

The truth comes from explicit formulas in float64 (tests/support/exact_calls.py). The error of each instruction set's
kernel, relative to the terms whose difference a result is, may not exceed that of the reference in float32, which is
plain PyTorch, by more than ``oracle.EPSILON``. If it does, PyTorch sums in other orders too, and the worst of them
counts, since the rounding of one order may happen to be small. Errors within the rounding of a sum, as `sum_rounding`
derives it, are no fault in any case: PyTorch adds the classes in more lanes than narrow vectors have. The bits of the
value without gradients, and of ``.backward()``, must be the bits of the values with gradients.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oekd_fast import EnsembleKDOutput, ensemble_kd_loss
from oekd_fast.common.machine import machine

from ..conftest import IMPLEMENTATIONS, ISAS
from ..support import oracle
from ..support.exact_calls import EPS, Exact, ExactCall
from ..support.random_calls import RandomCall, laid_out, random_call

RESULT = Path(__file__).with_name("results") / "fuzz_loss.json"
CHUNK = 1000  # calls
ORDERS = 64  # most orders in which PyTorch sums, to find its own error
LANES = {"avx512": 16, "avx2": 8, "baseline": 4}  # floats in a vector
TILE = {"avx512": 1024, "avx2": 1024, "baseline": 512}  # columns whose sums are added in float32
BLOCK = 8  # vectors that are added before their sum is added to those of the vectors before
STATISTICS = ("loss", "ce", "kd", "ensemble_ce")


@dataclass(frozen=True)
class Result:
    """What a call returned, or should return: statistics, gradients [S, B, C], and the gradient of the weights."""

    output: EnsembleKDOutput
    grads: Tensor
    weights_grad: Tensor | None

    def parts(self) -> dict[str, Tensor]:
        """Return the results that are compared with the truth, by name."""
        parts = {name: getattr(self.output, name) for name in STATISTICS} | {"grads": self.grads}
        return parts if self.weights_grad is None else parts | {"weights_grad": self.weights_grad}

    @classmethod
    def of(cls, call: RandomCall, value_and_grad, images: bool = False) -> Result:
        """Call `value_and_grad`, with buffers whose memory is NaN before.

        Args:
            images: call it with logits of images if the call has some.
        """
        call = call.as_images() if images else call
        weights, out, buffer = call.options.get("ensemble_weights"), None, None
        if call.out_layout:
            out = [laid_out(torch.full_like(z, math.nan), call.out_layout) for z in call.logits]
        if weights is not None:
            buffer = torch.full_like(weights, math.nan, memory_format=torch.contiguous_format)
        output, grads = value_and_grad(call.logits, call.target, out=out, weights_grad=buffer, **call.options)
        if output.loss.dim():  # a loss a row
            rows = [t.reshape(*t.shape[:n], -1) for t, n in zip(output[:4], (0, 1, 1, 0), strict=True)]
            output = output._replace(**dict(zip(STATISTICS, rows, strict=True)))
        if images and call.images is not None:
            grads = [grad.movedim(1, -1).flatten(0, 1) for grad in grads]
        return cls(output, torch.stack([grad.contiguous() for grad in grads]), buffer)


def errors_of(result: Result, truth: ExactCall) -> dict[str, float]:
    """Return the distances from the truth, relative to the terms of each result.

    Half a unit in the last place of a 16-bit gradient does not count, since it is the rounding to that dtype.
    """
    parts = result.parts()
    return {name: _error(parts[name], exact) for name, exact in truth.results.items()}


def _error(actual: Tensor, exact: Exact) -> float:
    # A divergence is infinite where a student's logit is -inf and its target's is not, and a result is infinite if it
    # is beyond the largest number of its dtype.
    expected = exact.value.to(actual.dtype)
    finite = expected.isfinite()
    truth, terms = exact.value, exact.terms
    if not finite.all():
        if not torch.allclose(actual[~finite], expected[~finite], equal_nan=True):
            return math.nan
        actual, truth, terms = actual[finite], truth[finite], terms[finite]
    distance = (actual.double() - truth).abs()
    if actual.dtype in (torch.bfloat16, torch.float16):
        distance = (distance - torch.from_numpy(oracle.half_ulp(truth.numpy(), actual.dtype))).clamp(min=0.0)
    return float(distance.norm() / torch.maximum(terms, truth.abs()).norm()) if distance.any() else 0.0


def plain_errors(call: RandomCall, truth: ExactCall, seed: int) -> Iterator[dict[str, float]]:
    """Yield the errors of plain PyTorch in float32, with students, rows and classes in one order after another."""
    floats = call.map(lambda t: t.float())
    yield errors_of(Result.of(floats, IMPLEMENTATIONS["reference"]), truth)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(ORDERS - 1):
        ordered, students, rows, classes = floats.reordered(generator)
        result = Result.of(ordered, IMPLEMENTATIONS["reference"])
        back = students.argsort()
        weights_grad = result.weights_grad
        if weights_grad is not None:
            weights_grad = weights_grad[back] if weights_grad.dim() == 1 else weights_grad[rows.argsort()][:, back]
        output = result.output._replace(ce=result.output.ce[back], kd=result.output.kd[back])
        if output.loss.dim():
            order = rows.argsort()
            output = output._replace(**{name: getattr(output, name)[..., order] for name in STATISTICS})
        grads = result.grads[back][:, rows.argsort()][:, :, classes.argsort()]
        yield errors_of(Result(output, grads, weights_grad), truth)


def sum_rounding(isa: str, classes: int) -> float:
    """Return the rounding error of a kernel's sum over classes, relative to the sum of absolute values.

    Each addition rounds what its lane has added so far by at most eps = 2^-24, so that a number is rounded once for
    each later vector of its block and each later block: fewer than L = min(n, BLOCK) + n / BLOCK times, where n is the
    number of vectors. The bound L eps is reached where numbers of equal size are added to the exponential 1 of the
    largest logit, since all are rounded in the same direction. Lanes and tiles are added in float64.
    """
    vectors = math.ceil(min(classes, TILE[isa]) / LANES[isa])
    return EPS * (min(vectors, BLOCK) + math.ceil(vectors / BLOCK))


def faults_of(call: RandomCall, *, forms: bool = True) -> list[str]:
    """Return what is wrong with the kernels' results of a call; [] if nothing is.

    Args:
        forms: compare the bits of the value alone and of ``.backward()`` too.
    """
    truth, faults = ExactCall(call), []
    results = {isa: Result.of(call, IMPLEMENTATIONS[f"native-{isa}"], images=True) for isa in ISAS}
    open_errors, classes = {}, call.logits[0].shape[1]
    for isa, result in results.items():
        for name, error in errors_of(result, truth).items():
            open_errors[isa, name] = error
        faults += [f"{isa}: {fault}" for fault in _wrong_counts(truth, result.output.correct)]
    allowed = {(isa, name): max(oracle.EPSILON, sum_rounding(isa, classes)) for isa, name in open_errors}
    plain = plain_errors(call, truth, seed=1)
    while True:
        # A comparison with NaN is false, so that NaN counts as an error that is too large.
        open_errors = {key: error for key, error in open_errors.items() if not error <= allowed[key]}
        if not open_errors or (errors := next(plain, None)) is None:
            break
        allowed = {(isa, name): max(most, errors[name] + oracle.EPSILON) for (isa, name), most in allowed.items()}
    faults += [
        f"{isa}: {name}: error {error:.3g}, allowed {allowed[isa, name]:.3g}"
        for (isa, name), error in open_errors.items()
    ]
    return faults + (_other_bits(call, results[ISAS[0]]) if forms else [])


def _wrong_counts(truth: ExactCall, correct: Tensor) -> list[str]:
    """Compare the numbers of correct rows; rounding may decide the ensemble's where two of its logits are equal."""
    wrong = not torch.equal(correct[:-1], truth.correct[:-1])
    if wrong or abs(int(correct[-1]) - int(truth.correct[-1])) > truth.unsure:
        return [f"correct: {correct.tolist()}, expected {truth.correct.tolist()}"]
    return []


def _other_bits(call: RandomCall, expected: Result) -> list[str]:
    """Compare the value alone and the gradients by ``.backward()`` with the results of one call."""
    if call.out_layout:  # buffers in another layout than the logits may be written by another kernel
        expected = Result.of(replace(call, out_layout=None), IMPLEMENTATIONS[f"native-{ISAS[0]}"], images=True)
    images = call.as_images()
    options = {name: value for name, value in images.options.items() if name != "grad_scale"}
    weights, scale = options.get("ensemble_weights"), images.options.get("grad_scale", torch.ones(()))
    if weights is not None:
        if call.images is not None and weights.dim() == 2:
            weights = weights.reshape(call.images, -1, weights.shape[1])
        options["ensemble_weights"] = weights
    faults = []
    value = ensemble_kd_loss(images.logits, images.target, backend="native", **options)
    if not _same_statistics(value, expected.output):
        faults.append("the value without gradients has other bits")
    if weights is not None:
        options["ensemble_weights"] = weights.detach().requires_grad_()
    leaves = [z.detach().requires_grad_() for z in images.logits]
    output = ensemble_kd_loss(leaves, images.target, backend="native", **options)
    upstream = scale.to(output.loss.dtype)
    upstream = upstream.reshape(output.loss.shape) if upstream.numel() > 1 else upstream.expand_as(output.loss)
    grads = torch.autograd.grad(output.loss, leaves, upstream)
    if call.images is not None:
        grads = [grad.movedim(1, -1).flatten(0, 1) for grad in grads]
    if not _same_statistics(output, expected.output) or not all(map(_same_bits, grads, expected.grads)):
        faults.append(".backward() has other bits")
    return faults


def _same_statistics(actual: EnsembleKDOutput, expected: EnsembleKDOutput) -> bool:
    return all(_same_bits(a.reshape(b.shape), b) for a, b in zip(actual, expected, strict=True))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.detach(), b) or bool((a.isnan() & b.isnan() | (a == b)).all())


def fuzz(seed: int, calls: Sequence[int]) -> list[dict[str, Any]]:
    """Run calls of a series and print each fault with the command that repeats it."""
    faults = []
    for index in calls:
        call = random_call(seed, index)
        try:
            found = faults_of(call, forms=index % 4 == 0)
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        if found:
            faults.append({"seed": seed, "call": index, "arguments": str(call), "faults": found})
            print(f"--seed {seed} --call {index}: {'; '.join(found)}\n    {call}", flush=True)
    return faults


def write(output: Path, options: argparse.Namespace, calls: int, done: int, seconds: float, faults: list) -> None:
    result = {
        "campaign": "fuzz_loss",
        "complete": done == calls,
        "seed": options.seed,
        "calls": done,
        "instruction_sets": list(ISAS),
        "workers": options.workers,
        "seconds": round(seconds, 1),
        "faults": faults,
        "machine": machine(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.fuzz_loss", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000, help="number of calls (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the series of calls (default: %(default)s)")
    parser.add_argument("--chunk", type=int, help=f"run chunk N alone: calls {CHUNK} N to {CHUNK} N + {CHUNK - 1}")
    parser.add_argument("--call", type=int, help="run one call of the series alone")
    parser.add_argument("--workers", type=int, default=1, help="number of processes (default: %(default)s)")
    parser.add_argument("--output", type=Path, help=f"JSON file of the result (default: {RESULT.name}, all calls only)")
    options = parser.parse_args(arguments)
    if not ISAS:
        parser.error("the compiled kernels are missing; build them with `python setup.py build_ext --inplace`")
    torch.set_num_threads(1)
    torch.manual_seed(0)

    alone = options.call is not None or options.chunk is not None
    calls = range(options.calls)
    if options.chunk is not None:
        calls = range(options.chunk * CHUNK, (options.chunk + 1) * CHUNK)
    if options.call is not None:
        calls = range(options.call, options.call + 1)
        print(random_call(options.seed, options.call))
    output = options.output or (None if alone else RESULT)
    chunks = [range(first, min(first + CHUNK, calls.stop)) for first in range(calls.start, calls.stop, CHUNK)]
    start, faults, done = time.monotonic(), [], 0
    with ProcessPoolExecutor(options.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for chunk, found in zip(chunks, pool.map(partial(fuzz, options.seed), chunks), strict=True):
            faults += found
            done += len(chunk)
            seconds = time.monotonic() - start
            print(f"{done} of {len(calls)} calls, {len(faults)} faults, {seconds:.0f} s", flush=True)
            if output:
                write(output, options, len(calls), done, seconds, faults)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
