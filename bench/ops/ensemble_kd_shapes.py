"""The ensemble distillation loss of images of labels, sequences, soft labels and standardised logits, with its
gradients, against naive PyTorch and torch.compile, on a CPU.

    python -m bench.ops.ensemble_kd_shapes [--json FILE] [--cases images ...] [--seconds 20]

Bandwidths count the logits of all students, read once, and their gradients, written once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.common.machine import machine

from .. import result_file
from ..measure import Timing, interleave
from .ensemble_kd import CE_WEIGHT, KD_WEIGHT, TEMPERATURE, VARIANTS
from .variants import compiled, with_backward


@dataclass(frozen=True)
class Case:
    """A problem in float32.

    Args:
        shape: that of a student's logits.
        class_dim: 1 or -1.
        students: number of them.
        probabilities: whether the labels are probabilities.
        standardise_logits: whether the distillation term compares standardised logits.
    """

    shape: tuple[int, ...]
    class_dim: int = 1
    students: int = 5
    probabilities: bool = False
    standardise_logits: bool = False

    def tensors(self) -> tuple[list[Tensor], Tensor]:
        """Return logits that require a gradient, and labels."""
        generator = torch.Generator().manual_seed(0)
        logits = [torch.empty(self.shape).normal_(0, 4, generator=generator) for _ in range(self.students)]
        if self.probabilities:
            target = torch.empty(self.shape).normal_(0, 2, generator=generator).softmax(dim=self.class_dim)
        else:
            rows = list(self.shape)
            classes = rows.pop(self.class_dim)
            target = torch.randint(classes, rows, generator=generator)
        return [z.requires_grad_() for z in logits], target

    @property
    def bytes_moved(self) -> int:
        return 2 * self.students * torch.Size(self.shape).numel() * 4


CASES = {
    "images": Case((8, 19, 256, 512)),
    "sequences": Case((4, 512, 32000), class_dim=-1),
    "sequences of two": Case((4, 512, 32000), class_dim=-1, students=2),
    "soft labels": Case((1024, 1000), probabilities=True),
    "standardised": Case((1024, 1000), standardise_logits=True),
    "standardised images": Case((8, 19, 256, 512), standardise_logits=True),
}


def naive_loss(logits: list[Tensor], target: Tensor, class_dim: int, standardise_logits: bool) -> Tensor:
    """The loss in plain PyTorch; `target` holds indices, or probabilities with classes in dimension 1."""
    ensemble = torch.stack(logits).mean(dim=0).detach()

    def scores(z: Tensor) -> Tensor:
        if standardise_logits:
            z = (z - z.mean(dim=class_dim, keepdim=True)) / z.std(dim=class_dim, correction=0, keepdim=True)
        return z / TEMPERATURE

    teacher = F.softmax(scores(ensemble), dim=class_dim)
    rows = ensemble.numel() // ensemble.shape[class_dim]
    loss = 0.0
    for student in logits:
        kl = F.kl_div(F.log_softmax(scores(student), dim=class_dim), teacher, reduction="sum") / rows
        if class_dim == -1:
            ce = F.cross_entropy(student.flatten(0, -2), target.flatten())
        else:
            ce = F.cross_entropy(student, target)
        loss = loss + CE_WEIGHT * ce + KD_WEIGHT * TEMPERATURE**2 * kl
    return loss


def variants(case: Case) -> dict[str, Callable[[], object]]:
    """Return the calls by name, in the order of `VARIANTS`; each computes the loss and all gradients."""
    logits, target = case.tensors()
    out = [torch.empty_like(z, requires_grad=False) for z in logits]
    compiled_loss = compiled(naive_loss)
    how = case.class_dim, case.standardise_logits
    options = {"class_dim": case.class_dim, "standardise_logits": case.standardise_logits, "backend": "native"}
    calls = (
        with_backward(lambda: naive_loss(logits, target, *how), logits),
        with_backward(lambda: compiled_loss(logits, target, *how), logits),
        lambda: ensemble_kd_value_and_grad(logits, target, out=out, **options),
        with_backward(lambda: ensemble_kd_loss(logits, target, **options).loss, logits),
    )
    return dict(zip(VARIANTS, calls, strict=True))


def measure(name: str, seconds: float) -> dict:
    """Time all variants of a case in turn for about `seconds`, one call a sample."""
    case = CASES[name]
    timings = interleave(variants(case), seconds, calls_before=1)
    result = {
        "case": name,
        "shape": list(case.shape),
        "class_dim": case.class_dim,
        "students": case.students,
        "probabilities": case.probabilities,
        "standardise_logits": case.standardise_logits,
        "milliseconds": {variant: timing.as_dict() for variant, timing in timings.items()},
        "gigabytes_per_second": round(case.bytes_moved / timings["value_and_grad"].median / 1e6, 2),
    }
    for ours in ("value_and_grad", "differentiable"):
        result[f"{ours}_speedup"] = {
            theirs: round(timings[theirs].median / timings[ours].median, 2) for theirs in ("eager", "compiled")
        }
    return result


def line(result: dict) -> str:
    """Return the result of one case as a line of text."""
    times = "  ".join(f"{name} {Timing(**timing)}" for name, timing in result["milliseconds"].items())
    speedups = "; ".join(
        f"{ours} {' and '.join(f'{factor}x {theirs}' for theirs, factor in result[f'{ours}_speedup'].items())}"
        for ours in ("value_and_grad", "differentiable")
    )
    shape = "x".join(map(str, result["shape"]))
    return f"{result['case']}: {shape}, S = {result['students']}, ms [quartiles]: {times}  | {speedups}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of the measurement of a case")
    arguments = parser.parse_args()

    where = machine()
    print(result_file.describe(where), flush=True)
    results = []
    for name in arguments.cases:
        results.append(measure(name, arguments.seconds))
        print(line(results[-1]), flush=True)
    if arguments.json:
        what = "ensemble_kd loss and gradients of images, sequences, soft labels, standardised logits, float32, T = 2"
        result_file.write(arguments.json, result_file.report(what, where, results))


if __name__ == "__main__":
    main()
