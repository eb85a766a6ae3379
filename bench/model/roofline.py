"""Lower bounds for the time of the loss and of a training step on a GPU, by bytes, arithmetic and launches.

    python -m bench.model.roofline [--card H200] [--students 5] [--temperature 2]
    python -m bench.model.roofline --step resnet110 [--batch-size 128]    # a training step, on each card

Nothing is run. Measured times are compared with these bounds.

- Bytes: "value_and_grad" reads every logit once and writes every gradient once. If a row does not fit on the chip, the
  second pass over it is assumed to hit the second-level cache. "differentiable" is a forward and a backward pass with
  an upstream gradient: it reads the logits twice, and writes and reads 3 S + 2 statistics of each row.
- Exponentials: one a class and row for each student and the ensemble, at temperature T. For T = 1, 2, 3, 4, the
  exponential at temperature 1 is a power of it; for other T it is computed separately.
- Launches: a fixed time each, added to the larger of the other two.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

from oekd_fast.kernels.ensemble_kd.plan import plan_ensemble_kd

from ..step.problem import StepProblem
from .step_cost import StepCost, step_costs

SIZES = ((128, 10), (128, 100), (1024, 1000), (8192, 1000), (8192, 4096), (8192, 32000), (2048, 128256))  # (B, C)
ITEMSIZES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        torch_name: Pattern of the name that torch gives it; other forms of the card have another bandwidth.
        copy_bandwidth: Bytes/s, reads and writes together.
        exp_per_second: Exponentials of all multiprocessors.
        sm_count: Number of multiprocessors.
        matrix_flops: Dense FLOP/s by precision; fp32 is tf32, torch's default for convolutions.
        source: Where the numbers come from.
        launch_latency: Seconds, an assumption.
    """

    name: str
    torch_name: str
    copy_bandwidth: float
    exp_per_second: float
    sm_count: int
    matrix_flops: dict[str, float]
    source: str
    launch_latency: float = 2e-6


CARDS = {
    card.name: card
    for card in (
        Card(
            "H200", r"\bH200$", 4.3e12, 4.2e12, 132, {"bf16": 989e12, "fp32": 494e12},
            "H200 SXM 141 GB HBM3e. bandwidth: a device copy, measured (datasheet: 4.8e12); exp: 16 a clock and SM at "
            "1.98 GHz, by datasheet",
        ),
        Card(
            "H100", r"\bH100 80GB HBM3", 3.35e12, 132 * 16 * 1.98e9, 132, {"bf16": 989e12, "fp32": 494e12},
            "H100 SXM 80 GB HBM3. bandwidth: datasheet; exp: 16 a clock and SM at 1.98 GHz, by datasheet",
        ),
        Card(
            "A100", r"\bA100-SXM4-80GB", 2.039e12, 108 * 16 * 1.41e9, 108, {"bf16": 312e12, "fp32": 156e12},
            "A100 SXM 80 GB. bandwidth: datasheet; exp: 16 a clock and SM at 1.41 GHz, by datasheet",
        ),
    )
}  # fmt: skip


def card_named(torch_name: str) -> Card | None:
    """Return the card of this name as torch gives it, or None for an unknown one."""
    return next((card for card in CARDS.values() if re.search(card.torch_name, torch_name)), None)


@dataclass(frozen=True)
class Problem:
    """The loss of S students' logits [B, C]."""

    students: int
    rows: int
    classes: int
    itemsize: int
    temperature: float = 2.0

    @property
    def logits_bytes(self) -> int:
        """Bytes of one pass over the logits, or over their gradients."""
        return self.students * self.rows * self.classes * self.itemsize

    @property
    def resident(self) -> bool:
        """Whether the rows of all students stay in registers between statistics and gradients."""
        return plan_ensemble_kd(self.students, self.classes, self.itemsize).regime != "streamed"


@dataclass(frozen=True)
class Cost:
    """Lower bounds on the work of one call of the loss."""

    bytes: int
    exponentials: int
    launches: int


@dataclass(frozen=True)
class Floor:
    """Seconds of each part; ``memory`` and ``exponentials`` overlap."""

    memory: float
    exponentials: float
    launches: float

    @property
    def seconds(self) -> float:
        return max(self.memory, self.exponentials) + self.launches

    @property
    def binds(self) -> str:
        """Name of the largest part."""
        return max(("memory", "exponentials", "launches"), key=lambda part: getattr(self, part))


def value_and_grad(problem: Problem) -> Cost:
    """Return the cost of loss and gradients in one launch."""
    moved = 2 * problem.logits_bytes + _labels(problem) + _results(problem)
    exponentials = _statistics_pass(problem)
    if not problem.resident:
        exponentials += _gradient_pass(problem)
    return Cost(moved, exponentials, launches=1)


def differentiable(problem: Problem) -> Cost:
    """Return the cost of forward and of backward with an upstream gradient, one fp32, as autograd runs them."""
    row_statistics = problem.rows * (3 * problem.students + 2) * 4
    moved = 3 * problem.logits_bytes + 2 * _labels(problem) + _results(problem) + 2 * row_statistics + 4
    return Cost(moved, _statistics_pass(problem) + _gradient_pass(problem), launches=2)


def floor(cost: Cost, card: Card) -> Floor:
    """Return the lower bound of a call's time."""
    return Floor(
        memory=cost.bytes / card.copy_bandwidth,
        exponentials=cost.exponentials / card.exp_per_second,
        launches=cost.launches * card.launch_latency,
    )


@dataclass(frozen=True)
class StepFloor:
    """Seconds of each part of a training step; all parts overlap."""

    memory: float
    arithmetic: float
    launches: float

    @property
    def seconds(self) -> float:
        return max(self.memory, self.arithmetic, self.launches)

    @property
    def binds(self) -> str:
        return max(("memory", "arithmetic", "launches"), key=lambda part: getattr(self, part))


def step_floor(cost: StepCost, card: Card, precision: str) -> StepFloor:
    """Return the lower bound of a training step as one CUDA graph whose students run concurrently."""
    return StepFloor(
        memory=cost.bytes / card.copy_bandwidth,
        arithmetic=cost.flops / card.matrix_flops[precision],
        launches=cost.chain * card.launch_latency,
    )


def _labels(problem: Problem) -> int:
    return 8 * problem.rows


def _results(problem: Problem) -> int:
    """Bytes of the results: loss, CE and KD of each student, the ensemble's CE in fp32; S + 1 counts in int64."""
    return 4 * (2 * problem.students + 2) + 8 * (problem.students + 1)


def _statistics_pass(problem: Problem) -> int:
    """Exponentials for the sums at T and at 1, of each student and the ensemble."""
    softmaxes = problem.students + 1
    return problem.rows * problem.classes * (softmaxes if _is_power(problem) else 2 * softmaxes)


def _gradient_pass(problem: Problem) -> int:
    """Exponentials for both softmaxes of each student, and for the ensemble's at T."""
    softmaxes = problem.students + 1
    return problem.rows * problem.classes * (softmaxes if _is_power(problem) else softmaxes + problem.students)


def _is_power(problem: Problem) -> bool:
    return problem.temperature in (1, 2, 3, 4)


def _line(problem: Problem, dtype: str, card: Card) -> str:
    parts = [f"{problem.rows:>5} x {problem.classes:<6} {dtype:<8} {'yes' if problem.resident else 'no':<7}"]
    for cost in (value_and_grad(problem), differentiable(problem)):
        at_best = floor(cost, card)
        parts.append(
            f"| {cost.bytes / 1e6:>9.2f} MB {cost.exponentials / 1e6:>8.2f} M exp {at_best.seconds * 1e3:>8.4f} ms  "
            f"{at_best.binds:<12}"
        )
    return " ".join(parts)


def step_lines(model: str, batch_size: int, students: int) -> Iterator[str]:
    """Yield the lower bounds of a family's training step on each card as lines of text."""
    yield "Floors by a model, not measurements: the largest of bytes / bandwidth, arithmetic / rate, chain x latency."
    yield f"{model} x {students}, B = {batch_size}, 32x32, a training step; bytes as in bench/model/step_cost.py."
    costs = {
        precision: step_costs(StepProblem(model, students, batch_size=batch_size, precision=precision))
        for precision in ("bf16", "fp32")
    }
    for card in CARDS.values():
        yield f"{card.name}: {card.copy_bandwidth:.4g} bytes/s, a launch {card.launch_latency * 1e6:g} us, assumed"
        for precision, by_model in costs.items():
            for name, cost in by_model.items():
                at_best = step_floor(cost, card, precision)
                memory, arithmetic, launches, floor_ms = (
                    1e3 * seconds for seconds in (at_best.memory, at_best.arithmetic, at_best.launches, at_best.seconds)
                )
                yield (
                    f"  {precision} {name:<8} {cost.bytes / 1e9:>6.2f} GB {memory:>6.2f} ms"
                    f"  {cost.flops / 1e9:>6.0f} GFLOP {arithmetic:>6.2f} ms"
                    f"  {cost.launches:>5} launches, {cost.chain:>4} in a chain {launches:>5.2f} ms"
                    f"  floor {floor_ms:>6.2f} ms, {at_best.binds}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", choices=CARDS, default="H200", help="GPU of the bounds of the loss")
    parser.add_argument("--students", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--step", metavar="MODEL", help="print the bounds of a training step of this model's family")
    parser.add_argument("--batch-size", type=int, default=128, help="batch size of the step")
    arguments = parser.parse_args()
    if arguments.step:
        print("\n".join(step_lines(arguments.step, arguments.batch_size, arguments.students)))
        return

    card = CARDS[arguments.card]
    print("Floors by a model, not measurements: max(bytes / bandwidth, exponentials / rate) + launches x latency.")
    print(
        f"{card.name}: {card.copy_bandwidth:.4g} bytes/s, {card.exp_per_second:.4g} exp/s, {card.sm_count} SMs "
        f"({card.source}); {card.launch_latency * 1e6:g} us a launch, assumed."
    )
    print(f"S = {arguments.students}, T = {arguments.temperature:g}; each part ends with what takes most of its time.")
    print(f"    B x C      dtype    on chip | {'value_and_grad':<55} | differentiable, forward and backward")
    for dtype, itemsize in ITEMSIZES.items():
        for rows, classes in SIZES:
            problem = Problem(arguments.students, rows, classes, itemsize, arguments.temperature)
            print(_line(problem, dtype, card))


if __name__ == "__main__":
    main()
