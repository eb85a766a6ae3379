"""Blocks of maps for the tests of the intermediate loss, with their loss and gradients in fp64 numpy.

An error against fp64 may not exceed the error of naive PyTorch in the same dtype by more than oracle.EPSILON.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast import feature_kd_loss, feature_kd_value_and_grad

from . import oracle

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = {
    "one student": dict(teacher=16, students=(16,)),
    "odd channels": dict(teacher=51, students=(38, 25, 13), size=(5, 3)),
    "odd pixels": dict(teacher=8, students=(6, 3), size=(7, 7), batch=3),
    "odd pixels, channels_last": dict(teacher=8, students=(6, 3), size=(7, 7), batch=3, layouts="c"),
    "one channel": dict(teacher=1, students=(1, 1), batch=3),
    "one pixel": dict(teacher=8, students=(6, 3), size=(1, 1), batch=5),
    "one row": dict(teacher=8, students=(6, 3), size=(1, 9), layouts="c"),
    "one column": dict(teacher=8, students=(6, 3), size=(9, 1)),
    "one image": dict(teacher=8, students=(6, 3), batch=1),
    "a student wider than the pseudo teacher": dict(teacher=6, students=(20, 3)),
    "many positions": dict(teacher=4, students=(3,), size=(16, 16), batch=5),
    "nine students, two launches": dict(teacher=4, students=(3,) * 9, size=(2, 2), batch=1),
    "the largest resident size": dict(teacher=128, students=(102,), size=(3, 3), dtype=torch.float16),
}
VIEWS = {
    "channels of a wider map": lambda x: torch.cat([x, x + 1], 1)[:, : x.shape[1]],
    "channels of a wider channels_last map": (
        lambda x: torch.cat([x, x + 1], 1).contiguous(memory_format=torch.channels_last)[:, : x.shape[1]]
    ),
    "every second image": lambda x: torch.stack([x, x + 1], 1).flatten(0, 1)[::2],
    "every second column": lambda x: torch.stack([x, x + 1], 4).flatten(3)[..., ::2],
    "part of each row": lambda x: torch.cat([x, x + 1], 3)[..., : x.shape[3]],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "channels and images swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "one image expanded": lambda x: x[:1].expand_as(x),
}


class Truth(NamedTuple):
    loss: float
    grads: list[np.ndarray]  # gradients of maps, weights and biases
    magnitudes: list[np.ndarray]  # for each element of a gradient, the sum of its terms' absolute values
    differences: list[np.ndarray]


class Block:
    """Maps of one block and their adapters."""

    def __init__(
        self, teacher: int, students: tuple[int, ...], size: tuple[int, int] = (4, 4), batch: int = 2, *,
        dtype: torch.dtype = torch.float32, adapters: torch.dtype | None = None, layouts: str = "n", scale: float = 1.0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        """Make normally distributed maps and adapters.

        Args:
            teacher: channels of the pseudo teacher.
            students: channels of each student.
            size: height and width of the maps.
            adapters: dtype of the adapters; None for that of the maps.
            layouts: "n" for NCHW or "c" for channels_last, for the pseudo teacher and each student, repeated.
        """
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return (scale * torch.randn(*shape, generator=generator)).to(DEVICE, dtype)

        formats = [torch.channels_last if layout == "c" else torch.contiguous_format for layout in layouts]
        maps = [
            normal(batch, channels, *size).contiguous(memory_format=formats[j % len(formats)])
            for j, channels in enumerate((teacher, *students))
        ]
        self.teacher, self.maps = maps[0], maps[1:]
        adapters = adapters or dtype
        self.weights = [(normal(teacher, c, dtype=torch.float32) / (scale * c**0.5)).to(adapters) for c in students]
        self.biases = [normal(teacher, dtype=adapters) for _ in students]

    @property
    def arguments(self):
        return self.maps, self.teacher, self.weights, self.biases

    def truth(self) -> Truth:
        """Loss and gradients in fp64, without a convolution."""
        t, loss, differences = as_numpy(self.teacher), 0.0, []
        grads, magnitudes = ([], [], []), ([], [], [])
        for x, w, b in zip(*map(as_numpys, (self.maps, self.weights, self.biases)), strict=True):
            w = w.reshape(w.shape[:2])
            d = np.einsum("oc,bchw->bohw", w, x) + b[:, None, None] - t
            loss += np.mean(d**2)
            differences.append(d)
            for parts, of in ((grads, np.asarray), (magnitudes, np.abs)):
                da = of(2 * d / d.size)
                parts[0].append(np.einsum("oc,bohw->bchw", of(w), da))
                parts[1].append(np.einsum("bohw,bchw->oc", da, of(x)))
                parts[2].append(da.sum((0, 2, 3)))
        return Truth(loss, sum(grads, []), sum(magnitudes, []), differences)

    def naive(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Gradients and differences of plain PyTorch: convolutions in the dtype of the maps, MSE in fp32."""
        leaves = [
            [t.detach().clone().requires_grad_() for t in part] for part in (self.maps, self.weights, self.biases)
        ]
        dtype, total, differences = self.teacher.dtype, 0.0, []
        for x, w, b in zip(*leaves, strict=True):
            adapted = F.conv2d(x, w.to(dtype).view(*w.shape[:2], 1, 1), b.to(dtype)).float()
            total = total + F.mse_loss(adapted, self.teacher.float())
            differences.append(as_numpy(adapted) - as_numpy(self.teacher))
        grads = torch.autograd.grad(total, [leaf for part in leaves for leaf in part])
        return as_numpys(grads), differences

    def check(self, loss: Tensor, grads: list[Tensor], upstream: float = 1.0, *, truncates: bool = False) -> None:
        """Check results against fp64.

        Args:
            loss, grads: the results, gradients of maps, weights and biases.
            upstream: what multiplies the gradients.
            truncates: whether results in bfloat16 are truncated instead of rounded, as in Triton's interpreter.
        """
        truth = self.truth()
        plain_grads, plain_differences = self.naive()
        # The error of plain PyTorch is summed over elements, since its errors in a single scalar may cancel by chance.
        allowed = oracle.EPSILON * truth.loss + sum(
            np.mean(np.abs(plain**2 - true**2))
            for plain, true in zip(plain_differences, truth.differences, strict=True)
        )
        assert loss.dtype == torch.float32 and loss.shape == ()
        assert abs(float(loss.double()) - truth.loss) <= allowed
        leaves = [*self.maps, *self.weights, *self.biases]
        for leaf, came, plain, true, terms in zip(
            leaves, grads, plain_grads, truth.grads, truth.magnitudes, strict=True
        ):
            assert came.dtype == leaf.dtype and came.shape == leaf.shape
            true, terms = (upstream * values.reshape(leaf.shape) for values in (true, terms))
            error = beyond_rounding(as_numpy(came), true, leaf.dtype, truncates)
            allowed = np.linalg.norm(upstream * plain - true) + oracle.EPSILON * np.linalg.norm(terms)
            assert error <= allowed, f"{list(leaf.shape)}: error {error:.3g}, allowed {allowed:.3g}"


def as_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def as_numpys(tensors) -> list[np.ndarray]:
    return [as_numpy(tensor) for tensor in tensors]


def beyond_rounding(came: np.ndarray, truth: np.ndarray, dtype: torch.dtype, truncates: bool) -> float:
    """Norm of the part of the error that is not explained by rounding the result to `dtype`."""
    rounding = 0.0 if dtype == torch.float32 else oracle.half_ulp(truth, dtype)
    if dtype == torch.bfloat16 and truncates:
        rounding = 2 * rounding
    return float(np.linalg.norm(np.maximum(np.abs(came - truth) - rounding, 0.0)))


def differentiable(block: Block, upstream: float = 1.0, backend: str = "triton") -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of maps, weights and biases, by autograd."""
    leaves = [[t.detach().requires_grad_() for t in part] for part in (block.maps, block.weights, block.biases)]
    loss = feature_kd_loss(leaves[0], block.teacher, *leaves[1:], backend=backend)
    grads = torch.autograd.grad(loss, sum(leaves, []), torch.tensor(upstream, device=DEVICE))
    return loss.detach(), list(grads)


def at_once(block: Block, upstream: float = 1.0, backend: str = "triton") -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of maps, weights and biases, by `feature_kd_value_and_grad`."""
    scale = torch.tensor(upstream, device=DEVICE)
    loss, *grads = feature_kd_value_and_grad(*block.arguments, grad_scale=scale, backend=backend)
    return loss, [grad for part in grads for grad in part]


def check(block: Block, upstream: float = 1.0, backend: str = "triton") -> None:
    """Check both forms of the loss, which must agree bit for bit in the gradients."""
    truncates = backend == "triton" and DEVICE.type == "cpu"
    loss, grads = differentiable(block, upstream, backend)
    block.check(loss, grads, upstream, truncates=truncates)
    value, again = at_once(block, upstream, backend)
    block.check(value, again, upstream, truncates=truncates)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
