"""Whether both losses are right on the device: compared with plain PyTorch in fp64, and the same bits in each call.

A case of the ensemble loss is a regime of the kernels and a dtype; one of the intermediate loss is a layout and a
dtype. The error of a gradient is its largest difference to fp64 over the largest entry in fp64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad, feature_kd_loss, feature_kd_value_and_grad

from ..ops.feature_kd import Block
from .context import Context

# Rows and classes which five students' logits have in each regime of kernels/ensemble_kd/plan.py.
REGIMES = {"rows": (300, 100), "resident": (257, 1000), "streamed": (64, 32000)}
TINY_REGIMES = {"rows": (3, 10), "resident": (1, 129), "streamed": (1, 4097)}
BLOCK, TINY_BLOCK = "64x51x38x25x12@8", "8x5x3@2"
BATCH = 16
CALLS = 3  # of each form, which must give the same bits
# Gradients have the dtype of the logits, and bf16 rounds by up to 2^-9.
ALLOWED = {"float32": 2e-5, "bfloat16": 4e-3}
ALLOWED_LOSS = 1e-5
ALLOWED_FEATURES = {"float32": 1e-4, "bfloat16": 1e-2}  # tf32 is off; products of bf16 maps are summed in fp32


def keys(argument: str, tiny: bool) -> list[str]:
    if tiny:  # Triton's interpreter truncates to bf16 where a GPU rounds
        return ["loss rows float32", "loss resident float32", "loss streamed float32", "features NHWC float32"]
    losses = [f"loss {regime} {dtype}" for regime in REGIMES for dtype in ALLOWED]
    return losses + [f"features {layout} {dtype}" for layout in ("NHWC", "NCHW") for dtype in ALLOWED]


def measure(key: str, context: Context) -> Iterator[dict]:
    what, form, dtype_name = key.split()
    dtype, device = getattr(torch, dtype_name), context.device
    if what == "loss":
        rows, classes = (TINY_REGIMES if device.tiny else REGIMES)[form]
        result = ensemble_errors(rows, classes, dtype, device.name, 2 if device.tiny else 5)
        allowed = {"loss": ALLOWED_LOSS, "gradients": ALLOWED[dtype_name]}
    else:
        block = Block.parse(TINY_BLOCK if device.tiny else BLOCK)
        result = feature_errors(block, 2 if device.tiny else BATCH, dtype, form == "NHWC", device.name)
        allowed = dict.fromkeys(("loss", "gradients"), ALLOWED_FEATURES[dtype_name])
    agrees = all(result[name] <= most for name, most in allowed.items()) and result["same_bits"]
    yield result | {"allowed": allowed, "right": agrees}


def lines(key: str, result: dict) -> Iterator[str]:
    verdict = "right" if result["right"] else "WRONG"
    allowed = result["allowed"]
    errors = ", ".join(f"{name} {result[name]:.1e} (<= {allowed[name]:.0e})" for name in allowed)
    yield f"{key:<24} {verdict}: {errors}{'' if result['same_bits'] else '; bits differ between calls'}"


def ensemble_errors(rows: int, classes: int, dtype: torch.dtype, device: str, students: int) -> dict:
    """Compare the Triton kernels with the plain PyTorch loss in fp64: in one launch, and by autograd."""
    generator = torch.Generator().manual_seed(0)
    logits = [(3 * torch.randn(rows, classes, generator=generator)).to(dtype) for _ in range(students)]
    target = torch.randint(classes, (rows,), generator=generator)
    truth, true_grads = ensemble_kd_value_and_grad([z.double() for z in logits], target, backend="reference")
    there, labels = [z.to(device) for z in logits], target.to(device)

    def at_once() -> list[Tensor]:
        output, grads = ensemble_kd_value_and_grad(there, labels, backend="triton")
        return [output.loss, *grads]

    def by_autograd() -> list[Tensor]:
        leaves = [z.detach().requires_grad_() for z in there]
        loss = ensemble_kd_loss(leaves, labels, backend="triton").loss
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    return worst([truth.loss, *true_grads], 1 if device == "cpu" else CALLS, at_once, by_autograd)


def feature_errors(block: Block, batch: int, dtype: torch.dtype, channels_last: bool, device: str) -> dict:
    """Compare the Triton kernels with the plain PyTorch loss in fp64: in one launch, and by autograd."""
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    width, *narrower = block.channels
    shapes = [(batch, channels, block.side, block.side) for channels in block.channels]
    teacher, *maps = (normal(*shape).to(dtype).contiguous(memory_format=memory_format) for shape in shapes)
    weights = [normal(width, channels) / channels**0.5 for channels in narrower]
    biases = [normal(width) for _ in narrower]
    maps64, weights64, biases64 = ([t.double() for t in tensors] for tensors in (maps, weights, biases))
    truth, *true_grads = feature_kd_value_and_grad(maps64, teacher.double(), weights64, biases64, backend="reference")
    there = [[t.to(device) for t in tensors] for tensors in (maps, weights, biases)]
    target = teacher.to(device)

    def at_once() -> list[Tensor]:
        loss, *grads = feature_kd_value_and_grad(there[0], target, there[1], there[2], backend="triton")
        return [loss, *(g for group in grads for g in group)]

    def by_autograd() -> list[Tensor]:
        groups = [[t.detach().requires_grad_() for t in tensors] for tensors in there]
        loss = feature_kd_loss(groups[0], target, groups[1], groups[2], backend="triton")
        return [loss.detach(), *torch.autograd.grad(loss, [t for group in groups for t in group])]

    exact = [truth, *(g for group in true_grads for g in group)]
    return worst(exact, 1 if device == "cpu" else CALLS, at_once, by_autograd)


def worst(truth: Sequence[Tensor], calls: int, *forms: Callable[[], Sequence[Tensor]]) -> dict:
    """Return the largest errors of the loss and the gradients of all forms, and whether calls give the same bits."""
    errors: dict = {"loss": 0.0, "gradients": 0.0, "same_bits": True}
    true_loss, *true_grads = truth
    for form in forms:
        loss, *grads = (t.cpu() for t in form())
        errors["loss"] = max(errors["loss"], abs(loss.item() / true_loss.item() - 1))
        for grad, true in zip(grads, true_grads, strict=True):
            error = (grad.double() - true).abs().max() / true.abs().max()
            errors["gradients"] = max(errors["gradients"], error.item())
        for _ in range(calls - 1):
            again = [t.cpu() for t in form()]
            errors["same_bits"] &= all(torch.equal(a, b) for a, b in zip(again, (loss, *grads), strict=True))
    return errors
