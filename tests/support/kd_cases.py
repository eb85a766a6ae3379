"""Inputs of the ensemble distillation loss that the tests share: ordinary ones, and extremes."""

from __future__ import annotations

import math

import torch

from ..conftest import batch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 2.5, 0.5, 10.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def minus_infinity_everywhere():
    z, y = batch(classes=21)
    for student in z:
        student[:, 3::4] = -math.inf
    return z, y // 4 * 4, {}


def minus_infinity_in_one():
    z, y = batch(classes=21)
    z[1][:, 2::3] = -math.inf
    return z, y // 3 * 3, {}


def minus_infinity_by_rows():
    z, y = batch(rows=8, classes=40)
    for row in range(8):
        z[row % 5][row, row::7] = -math.inf
        y[row] = (row + 1) % 7  # a class whose logits are finite in this row
    return z, y, {}


def minus_infinity_for_thousands():
    # The row is longer than any tile of a kernel, and some tiles hold only -inf.
    z, y = batch(rows=4, classes=5000)
    for student in z:
        student[:, :2500] = -math.inf
    z[2][:, 4000:] = -math.inf
    return z, 2500 + y % 1500, {}


def huge(rows=12, classes=50):
    signs = [torch.randint(0, 2, (rows, classes), generator=generator(j)) * 2.0 - 1 for j in range(5)]
    return [1e4 * s for s in signs], batch(rows=rows, classes=classes)[1], {}


def huge_and_random():
    z, y = batch(rows=16, classes=1500, scale=1e4)
    return [student.clamp(-3e4, 3e4) for student in z], y, {}


def two_hundred_apart():
    z, y = batch(rows=9, classes=11, scale=0.1)
    for j, student in enumerate(z):
        student[:, j] += 200
    return z, y, {}


def identical():
    z, y = batch()
    return [z[0].clone() for _ in z], y, {}


def ties():
    integers = [torch.randint(0, 3, (64, 6), generator=generator(j)).float() for j in range(5)]
    return integers, batch(rows=64, classes=6)[1], {}


def ignoring():
    z, y = batch(rows=20)
    y[::3] = -100
    return z, y, {}


def ignoring_a_class():
    z, y = batch(rows=20)
    return z, y, {"ignore_index": int(y[4])}


def without_target():
    z, _ = batch()
    return z, None, {"ce_weight": 0.0}


def with_options(rows=16, classes=13, students=5, **options):
    return *batch(students=students, rows=rows, classes=classes), options


CASES = {
    "plain": batch,
    "ties": ties,
    "-inf in all students": minus_infinity_everywhere,
    "-inf in one student": minus_infinity_in_one,
    "-inf, another student each row": minus_infinity_by_rows,
    "-inf for thousands of classes": minus_infinity_for_thousands,
    "huge": huge,
    "huge and random": huge_and_random,
    "200 apart": two_hundred_apart,
    "one student": lambda: with_options(students=1),
    "two students": lambda: with_options(students=2),
    "many students": lambda: with_options(students=33),
    "identical students": identical,
    "one row": lambda: with_options(rows=1),
    "one class": lambda: with_options(classes=1),
    "some labels ignored": ignoring,
    "a class ignored": ignoring_a_class,
    "no target": without_target,
    "cross-entropy only": lambda: with_options(kd_weight=0.0),
    "label smoothing": lambda: with_options(label_smoothing=0.1),
    "labels smoothed away": lambda: with_options(label_smoothing=1.0),
    "sum": lambda: with_options(reduction="sum"),
    "weights": lambda: with_options(ensemble_weights=torch.tensor([0.4, 0.1, 0.0, 0.2, 0.3])),
    "weights, one negative": lambda: with_options(ensemble_weights=torch.tensor([1.5, -0.5, 0.25, 0.25, 0.5])),
    "all options": lambda: with_options(
        classes=1030,
        temperature=3.0,
        ce_weight=0.3,
        kd_weight=2.0,
        label_smoothing=0.2,
        ignore_index=4,
        reduction="sum",
        ensemble_weights=torch.tensor([0.4, 0.1, 0.05, 0.2, 0.25]),
    ),
}
CASES |= {f"T = {t}": lambda t=t: with_options(temperature=t) for t in TEMPERATURES}
CASES |= {f"T = {t}, C = 3000": lambda t=t: with_options(rows=3, classes=3000, temperature=t) for t in TEMPERATURES}
SIZES = {2: 32, 10: 32, 100: 16, 1271: 8, 32000: 2, 128256: 2}  # classes: rows


def case(name, dtype=torch.float32):
    """Return logits, target and options of a named case, or of a number of classes."""
    logits, target, *options = CASES[name]() if name in CASES else batch(rows=SIZES[name], classes=name)
    return [z.to(dtype) for z in logits], target, *(options or ({},))
