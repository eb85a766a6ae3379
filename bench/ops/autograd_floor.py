"""What autograd adds to the loss: its time with `.backward()` beside that of a node that computes nothing, on a CPU.

    python -m bench.ops.autograd_floor [--json FILE] [--size 128x100] [--seconds 20]

The empty node has the same inputs and outputs as the loss, and is compiled by this command with the C++ compiler of
the machine, which takes a minute. "value_and_grad" and an empty node together are the floor of the loss with
`.backward()`: less would mean that computing the loss takes less time inside autograd than outside it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils import cpp_extension

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.common.machine import machine

from .. import result_file
from ..measure import Timing, interleave
from .ensemble_kd import STUDENTS
from .variants import with_backward

SOURCE = Path(__file__).with_name("empty_node.cpp")
VARIANTS = ("value_and_grad", "differentiable", "empty_node", "value_and_grad_and_empty_node")


def load_empty_nodes(folder: str) -> SimpleNamespace:
    """Compile `empty_node.cpp` in `folder` and return its ops, which map logits to an empty scalar.

    Returns:
        ``empty_node``, a ``torch::autograd::Function``, and ``bare_node``, a node without that class.
    """
    cpp_extension.load(
        "oekd_fast_bench", [str(SOURCE)], extra_cflags=["-O3"], build_directory=folder, is_python_module=False
    )
    ops = torch.ops.oekd_fast_bench
    return SimpleNamespace(empty_node=ops.empty_node, bare_node=ops.bare_node)


def variants(rows: int, classes: int, empty_node: Callable[[list[Tensor]], Tensor]) -> dict[str, Callable[[], object]]:
    """Return the calls by name, in the order of `VARIANTS`."""
    generator = torch.Generator().manual_seed(0)
    logits = [(4 * torch.randn(rows, classes, generator=generator)).requires_grad_() for _ in range(STUDENTS)]
    target = torch.randint(classes, (rows,), generator=generator)
    out = [torch.empty_like(z, requires_grad=False) for z in logits]
    empty = with_backward(lambda: empty_node(logits), logits)

    def value_and_grad() -> None:
        ensemble_kd_value_and_grad(logits, target, out=out)

    def both() -> None:
        value_and_grad()
        empty()

    differentiable = with_backward(lambda: ensemble_kd_loss(logits, target).loss, logits)
    return dict(zip(VARIANTS, (value_and_grad, differentiable, empty, both), strict=True))


def shares(timings: dict[str, Timing]) -> dict[str, float]:
    """Return the speed of the loss with `.backward()`, and that of the floor, as shares of value_and_grad's."""
    alone = timings["value_and_grad"].median
    names = {"differentiable": "differentiable", "floor": "value_and_grad_and_empty_node"}
    return {share: round(alone / timings[name].median, 3) for share, name in names.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--size", default="128x100", metavar="BxC", help="rows x classes")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of the measurement")
    arguments = parser.parse_args()

    where = machine()
    print(result_file.describe(where), flush=True)
    rows, classes = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        timings = interleave(variants(rows, classes, load_empty_nodes(folder).empty_node), arguments.seconds)
    result = {
        "rows": rows,
        "classes": classes,
        "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        "share_of_value_and_grad": shares(timings),
    }
    for name, timing in timings.items():
        print(f"{name:<30} {timing} ms")
    print("speed as a share of value_and_grad's:", result["share_of_value_and_grad"])
    if arguments.json:
        what = "ensemble_kd loss with .backward() beside an empty autograd node, S = 5, fp32"
        result_file.write(arguments.json, result_file.report(what, where, [result]))


if __name__ == "__main__":
    main()
