"""Random calls of the ensemble distillation loss that its CPU kernels support, each made from a seed.

Class counts are 1, 2, and on both sides of the vector widths and tiles of each instruction set; row counts are 0, 1 and
on both sides of the pieces that threads share. Every tensor of a call is exact in float32, so that a float64 copy
states the same problem.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
VECTORS = (4, 8, 16, 32, 64)  # floats in a vector, and in the vectors that a loop unrolls
TILES = (512, 1024)  # columns of a tile of the baseline kernel, and of the wider ones
PIECE = 8192  # elements of all students in one piece of work
STUDENTS = (1, 2, 3, 4, 5)
MANY_STUDENTS = (6, 7, 8, 9, 16, 17)  # in a tenth of the calls
OWN_MEMORY = ("contiguous", "contiguous", "transposed", "padded", "every second", "offset", "negated")
LAYOUTS = (*OWN_MEMORY, "same rows", "same classes")


@dataclass(frozen=True)
class RandomCall:
    """Arguments of ``ensemble_kd_value_and_grad``.

    Attributes:
        logits: S tensors [B, C].
        target: class indices [B] of any integer dtype, probabilities [B, C], or None.
        options: keyword arguments, tensors included; without ``out``.
        out_layout: layout of the buffers for the gradients; None: the call has none.
        images: number of images that the rows are the positions of; None: the call has logits [B, C].
    """

    logits: list[Tensor]
    target: Tensor | None
    options: dict[str, Any]
    out_layout: str | None
    images: int | None = None

    def __str__(self) -> str:
        def show(value: Any) -> str:
            if isinstance(value, Tensor):
                shape = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
                return f"{shape} = {value.item():g}" if value.numel() == 1 else f"{shape}, strides {value.stride()}"
            return f"[{', '.join(map(show, value))}]" if isinstance(value, list) else repr(value)

        given = {"logits": self.logits, "target": self.target, **self.options}
        given |= {"out": self.out_layout, "images": self.images}
        return "; ".join(f"{name}: {show(value)}" for name, value in given.items() if value is not None)

    def exact(self) -> RandomCall:
        """Return the same problem with float64 tensors."""
        return self.map(lambda t: t.double())

    def map(self, change) -> RandomCall:
        """Return the call with `change` of each floating tensor."""

        def changed(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value) if value.is_floating_point() else value
            return [changed(item) for item in value] if isinstance(value, list) else value

        options = {name: changed(value) for name, value in self.options.items()}
        return replace(self, logits=changed(self.logits), target=changed(self.target), options=options)

    @property
    def has_probabilities(self) -> bool:
        return self.target is not None and self.target.is_floating_point()

    def as_images(self) -> RandomCall:
        """Return the call with logits [images, C, B / images], whose rows are adjacent in memory."""
        if self.images is None:
            return self

        def image(z: Tensor) -> Tensor:
            return z.reshape(self.images, -1, z.shape[1]).movedim(-1, 1).contiguous()

        options = dict(self.options)
        if "teacher_logits" in options:
            options["teacher_logits"] = [image(teacher) for teacher in options["teacher_logits"]]
        target = self.target
        if target is not None:
            target = image(target) if self.has_probabilities else target.reshape(self.images, -1)
        return replace(self, logits=[image(z) for z in self.logits], target=target, options=options)

    def reordered(self, generator: torch.Generator) -> tuple[RandomCall, Tensor, Tensor, Tensor]:
        """Return the call with students, rows and classes in another order, and the three orders.

        The problem is the same, but sums round otherwise.
        """
        shape = (len(self.logits), *self.logits[0].shape)
        students, rows, classes = (torch.randperm(n, generator=generator) for n in shape)

        def matrix(z: Tensor) -> Tensor:
            return z[rows][:, classes]

        options = dict(self.options)
        target = None if self.target is None else self.target[rows]
        if self.has_probabilities:
            target = target[:, classes]
        elif target is not None:
            target = target.long()
            counts = target != options["ignore_index"]
            target = torch.where(counts, classes.argsort()[target.clamp(0, shape[2] - 1)], target)
            # A label may now equal an ignore_index that is a class.
            options["ignore_index"] = -1
            target = target.masked_fill(~counts, -1)
        if (weights := options.get("ensemble_weights")) is not None:
            options["ensemble_weights"] = weights[students] if weights.dim() == 1 else weights[rows][:, students]
        if "teacher_logits" in options:
            options["teacher_logits"] = [matrix(teacher) for teacher in options["teacher_logits"]]
        if "weight" in options:
            options["weight"] = options["weight"][classes]
        if (scale := options.get("grad_scale")) is not None and scale.numel() > 1:
            options["grad_scale"] = scale[rows]
        if "mixing" in options:
            teachers = torch.arange(shape[0], options["mixing"].shape[1])
            options["mixing"] = options["mixing"][students][:, torch.cat([students, teachers])]
        call = replace(self, logits=[matrix(self.logits[j]) for j in students], target=target, options=options)
        return call, students, rows, classes


def laid_out(z: Tensor, layout: str) -> Tensor:
    """Return a tensor with the elements of `z` in other memory; unused memory is NaN."""
    rows, classes = z.shape
    if layout == "transposed":
        return z.t().contiguous().t()
    if layout == "padded":
        wide = z.new_full((rows, classes + 5), math.nan)
        wide[:, 2 : 2 + classes] = z
        return wide[:, 2 : 2 + classes]
    if layout == "every second":
        wide = z.new_full((2 * rows, 2 * classes), math.nan)
        wide[1::2, ::2] = z
        return wide[1::2, ::2]
    if layout == "offset":
        flat = z.new_full((z.numel() + 3,), math.nan)
        flat[3:] = z.flatten()
        return flat[3:].view(z.shape)
    if layout == "same rows" and rows:
        return z[:1].expand(rows, classes)
    if layout == "same classes":
        return z[:, :1].expand(rows, classes)
    if layout == "negated":  # a view whose elements PyTorch negates when it reads them
        return torch.complex(torch.zeros_like(z), -z).conj().imag
    return z.contiguous()


def random_call(seed: int, index: int) -> RandomCall:
    """Make call `index` of the series `seed`."""
    return _Maker(seed, index).call()


class _Maker:
    def __init__(self, seed: int, index: int) -> None:
        self.random = random.Random(f"{seed}:{index}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(62))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def around(self, number: int) -> int:
        return max(1, number + self.random.choice((-1, 0, 1)))

    def shape(self) -> tuple[int, int, int]:
        students = self.random.choice(MANY_STUDENTS if self.chance(0.1) else STUDENTS)
        kind = self.random.random()
        if kind < 0.05:
            classes = 1
        elif kind < 0.55:
            classes = self.around(self.random.choice(VECTORS))
        elif kind < 0.85:
            classes = self.random.randint(2, 130)
        elif kind < 0.995:
            classes = self.around(self.random.choice(TILES) * self.random.choice((1, 1, 2)))
        else:
            classes = self.random.randint(2049, 6000)
        kind = self.random.random()
        if kind < 0.08:
            rows = self.random.choice((0, 1))
        elif kind < 0.5:
            rows = self.around(self.random.choice((2, 4, 8, 16)))
        else:
            rows = self.around(PIECE // (students * classes) or 1)
        budget = 300_000 if self.chance(0.002) else 12_000
        return students, min(rows, budget // (students * classes) + 1), classes

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def number(self, value: float, dtype: torch.dtype) -> float | Tensor:
        """Return a number that float32 holds, or a tensor of one element that holds it."""
        tensor = torch.tensor(value, dtype=self.random.choice((torch.float32, dtype)))
        return tensor if self.chance(0.15) else tensor.float().item()

    def weight(self) -> float:
        return self.random.choice((0.0, 0.7, 0.15, 1.0, -0.5, 1e-3, 12.0, self.random.uniform(0, 2)))

    def temperature(self) -> float:
        exact = (1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 8.0, 2.5, 0.5, 10.0)
        return self.random.choice((*exact, math.exp(self.random.uniform(math.log(0.2), math.log(30.0)))))

    def call(self) -> RandomCall:
        students, rows, classes = self.shape()
        dtype = self.random.choice(DTYPES)
        self.scale = self.random.choice((3.0, 3.0, 3.0, 1.0, 0.1, 1e-3, 30.0, 1e3, 1e-30, 0.0))
        options: dict[str, Any] = {
            "temperature": self.number(self.temperature(), dtype),
            "kd_weight": self.number(self.weight(), dtype),
            "ignore_index": self.random.choice((-100, -100, -1, 0, classes - 1, classes, 2**62)),
            "reduction": self.random.choice(("mean", "mean", "sum", "none")),
            "label_smoothing": self.random.choice((0.0, 0.0, 0.1, 1.0, self.random.random())),
        }
        target = None if self.chance(0.1) else self.labels(rows, classes, options["ignore_index"])
        options["ce_weight"] = 0.0 if target is None else self.number(self.weight(), dtype)
        options["ensemble_ce_weight"] = 0.0 if target is None or self.chance(0.6) else self.number(self.weight(), dtype)
        if target is not None and self.chance(0.25):
            target = self.probabilities(rows, classes)
        masked = options["label_smoothing"] == 0 and self.chance(0.15) and classes > 1
        masked = masked and not (target is not None and target.is_floating_point())
        if target is not None and self.chance(0.3):
            options["weight"] = self.class_weights(classes)
        if self.chance(0.25):
            options["divergence"] = self.random.choice(("reverse", "js"))
            options["beta"] = self.random.choice((0.5, 0.1, 0.9, self.random.uniform(0.05, 0.95)))
        if options["reduction"] == "mean" and self.chance(0.2):
            options["num_items"] = self.random.choice((1, 7, 3.5, torch.tensor(1000), torch.tensor(33.0)))
        logits = self.logits(students, rows, classes, dtype)
        self.objective(options, students, rows, classes, positive=masked)
        given = logits + options.get("teacher_logits", [])
        if masked:
            self.mask(given, target)
        for tensors in (logits, options.get("teacher_logits", [])):
            layout = self.random.choice((*LAYOUTS, "mixed"))
            for j, z in enumerate(tensors):
                chosen = self.random.choice(OWN_MEMORY) if layout == "mixed" else layout
                if (masked and chosen.startswith("same")) or (chosen == "negated" and z.dtype != torch.float32):
                    chosen = "contiguous"
                tensors[j] = laid_out(z, chosen)
        if options["reduction"] == "none" and self.chance(0.7):
            options["grad_scale"] = self.randn(rows).to(self.random.choice((torch.float32, torch.float64)))
        elif self.chance(0.2):
            options["grad_scale"] = torch.tensor(self.random.choice((1.0, 0.5, 128.0, -3.7, 0.0)))
        out = self.random.choice((None, None, "contiguous", "transposed", "padded", "every second", "offset"))
        images = self.random.choice([n for n in (1, 2, 3, 5) if rows % n == 0]) if self.chance(0.3) else None
        if images:
            out = None
        if self.chance(0.3):
            options["standardise_logits"] = True
        if target is not None and not target.is_floating_point() and self.chance(0.2):
            options |= {"divergence": "decoupled", "beta": self.random.choice((0.0, 1.0, 2.0, 8.0))}
        return RandomCall(logits, target, options, out, images)

    def labels(self, rows: int, classes: int, ignore_index: int) -> Tensor:
        target = torch.randint(classes, (rows,), generator=self.generator)
        if self.chance(0.2):  # labels at the borders
            target = (target % 2) * (classes - 1)
        share = self.random.choice((0.0, 0.0, 0.2, 0.2, 0.9, 1.0))
        ignored = torch.rand(rows, generator=self.generator) < share
        target[ignored] = ignore_index
        if self.chance(0.2):
            narrow = self.random.choice((torch.int32, torch.int16, torch.int8, torch.uint8))
            held = torch.iinfo(narrow)
            if not ignored.any() or held.min <= ignore_index <= held.max:
                target = target.to(narrow) if classes <= held.max else target
        return torch.stack([target, target], dim=1)[:, 0] if self.chance(0.2) else target

    def probabilities(self, rows: int, classes: int) -> Tensor:
        """Make labels as mixup and label files hold them: spread, mixed from two classes, or one-hot in some rows."""
        soft = (self.random.choice((0.3, 2.0, 10.0)) * self.randn(rows, classes)).softmax(dim=1)
        first, second = (torch.randint(classes, (rows,), generator=self.generator) for _ in range(2))
        kind = self.random.random()
        if kind < 0.5:
            share = torch.rand(rows, 1, generator=self.generator)
            one, two = (torch.nn.functional.one_hot(label, classes).float() for label in (first, second))
            mixed = share * one + (1 - share) * two
            soft = mixed if kind < 0.3 else torch.where(torch.rand(rows, 1, generator=self.generator) < 0.5, one, soft)
        soft = soft.to(self.random.choice(FLOATS))
        return laid_out(soft, self.random.choice(("contiguous", "transposed", "padded", "every second", "offset")))

    def class_weights(self, classes: int) -> Tensor:
        weights = 3 * torch.rand(classes, generator=self.generator)
        if self.chance(0.3):
            weights *= torch.rand(classes, generator=self.generator) < 0.6
        weights[self.random.randrange(classes)] += 0.1
        return weights.to(self.random.choice(FLOATS))

    def logits(self, students: int, rows: int, classes: int, dtype: torch.dtype) -> list[Tensor]:
        logits = [(self.scale * self.randn(rows, classes)).to(dtype) for _ in range(students)]
        if self.chance(0.1):  # equal logits, whose first is the largest
            logits = [(z / (self.scale or 1.0)).round() for z in logits]
        if self.chance(0.05):  # one class far above the others
            for z in logits:
                z[:, self.random.randrange(classes)] += 200.0
        if self.chance(0.05):  # one student twice
            logits[-1] = logits[0]
        return logits

    def objective(self, options: dict[str, Any], students: int, rows: int, classes: int, positive: bool) -> None:
        """Add ensemble weights or a gate, external teachers and a mixing matrix."""

        def weights(*shape: int) -> Tensor:
            w = self.randn(*shape).softmax(dim=-1)
            if self.chance(0.3):
                w = w * (torch.rand(shape, generator=self.generator) < 0.6)
            if not positive and self.chance(0.2):
                w = w - 0.1
            return w.to(self.random.choice(FLOATS))

        mixes, kind = self.chance(0.25), self.random.random()
        if kind < 0.3:
            options["ensemble_weights"] = weights(students)
        elif kind < 0.5 and not mixes:
            options["ensemble_weights"] = weights(rows, students)
        teachers = self.random.randint(0, 3) if mixes else int(self.chance(0.2))
        if teachers:
            scale = self.scale if self.chance(0.7) else 3.0
            given = [scale * self.randn(rows, classes) for _ in range(teachers)]
            options["teacher_logits"] = [z.to(self.random.choice(FLOATS)) for z in given]
        if mixes:
            options["mixing"] = weights(students, students + teachers)
            # Each pair of a student and a source costs the reference a divergence.
            options["mixing_space"] = self.random.choice(("logits", "probabilities" if students <= 9 else "logits"))

    def mask(self, given: list[Tensor], target: Tensor | None) -> None:
        """Set logits to -inf, the same ones in all students and teachers, but never a whole row or a label."""
        rows, classes = given[0].shape
        hidden = torch.rand(rows, classes, generator=self.generator) < self.random.choice((0.05, 0.5, 0.95))
        if self.chance(0.3):
            hidden[:, : classes // 2] = True
        kept = torch.randint(classes, (rows,), generator=self.generator)
        if target is not None:
            inside = (target >= 0) & (target < classes)
            kept = torch.where(inside, target, kept)
        hidden[torch.arange(rows), kept] = False
        for z in given:
            z[hidden] = -math.inf
