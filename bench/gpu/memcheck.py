"""The streamed kernels on a small problem under compute-sanitizer's memcheck.

    compute-sanitizer --tool memcheck python -m bench.gpu.memcheck

As a module it runs the loss and the gradients once in each form; `measure` runs that under compute-sanitizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .context import Context

ROWS, CLASSES, STUDENTS = 4, 10_000, 5
TINY = 1, 4097, 2
SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error")
TAIL = 3000


def keys(argument: str, tiny: bool) -> list[str]:
    return ["streamed"]


def measure(key: str, context: Context) -> Iterator[dict]:
    """Yield the number of errors, and the end of the output if there are any.

    Raises:
        FileNotFoundError: compute-sanitizer is not installed.
        RuntimeError: the output has no summary.
    """
    output, status = context.device.checked("bench.gpu.memcheck", context.left())
    found = SUMMARY.search(output)
    if found is None:
        raise RuntimeError(f"memcheck: expected a line 'ERROR SUMMARY', exit status {status}, got\n{output[-TAIL:]}")
    errors = int(found[1])
    yield {"errors": errors, "right": errors == 0 and status == 0} | ({"output": output[-TAIL:]} if errors else {})


def lines(key: str, result: dict) -> Iterator[str]:
    yield f"memcheck of {key}: {result['errors']} errors"


def main() -> None:
    import torch

    from .smoke_losses import ensemble_errors

    if torch.cuda.is_available():
        print(ensemble_errors(ROWS, CLASSES, torch.bfloat16, "cuda", STUDENTS))
    else:
        rows, classes, students = TINY
        print(ensemble_errors(rows, classes, torch.float32, "cpu", students))


if __name__ == "__main__":
    main()
