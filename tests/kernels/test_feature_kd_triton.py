"""The Triton kernels of the intermediate loss: on the GPU where there is one, else in Triton's interpreter on the CPU.

Judged by fp64 in numpy: an error may not exceed that of naive PyTorch in the same dtype by more than oracle.EPSILON.
"""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from oekd_fast import FeatureKDLoss, feature_kd_loss, feature_kd_value_and_grad
from oekd_fast.kernels.feature_kd import launch as kernels
from oekd_fast.kernels.feature_kd.plan import RESIDENT_CHANNELS, plan_feature_kd
from oekd_fast.losses import feature_kd as feature_ops
from oekd_fast.losses.feature_kd import MAX_CHANNELS

from ..support import oracle

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HALVES = DTYPES[1:]
pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture
def poisoned(monkeypatch):
    """What a kernel does not write is NaN."""

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))


class Truth(NamedTuple):
    loss: float
    grads: list[np.ndarray]  # of maps, weights and biases
    magnitudes: list[np.ndarray]  # sums of the absolute terms that each gradient's element is a sum of
    differences: list[np.ndarray]


class Block:
    """Maps of one block and their adapters, and what the loss and its gradients are."""

    def __init__(
        self, teacher: int, students: tuple[int, ...], size: tuple[int, int] = (4, 4), batch: int = 2, *,
        dtype: torch.dtype = torch.float32, adapters: torch.dtype | None = None, layouts: str = "n", scale: float = 1.0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        """`layouts`: n for NCHW, c for channels_last; one for the pseudo teacher's map and each student's, repeated."""
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
        """In fp64, without a convolution."""
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
        """Gradients and differences as one would write it: convolutions in the maps' dtype, MSE in fp32."""
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

    def check(self, loss: Tensor, grads: list[Tensor], upstream: float = 1.0) -> None:
        truth = self.truth()
        plain_grads, plain_differences = self.naive()
        # One scalar may be right by luck: what counts is how far naive PyTorch's elements are off.
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
            error = beyond_rounding(as_numpy(came), true, leaf.dtype)
            allowed = np.linalg.norm(upstream * plain - true) + oracle.EPSILON * np.linalg.norm(terms)
            assert error <= allowed, f"{list(leaf.shape)}: error {error:.3g}, allowed {allowed:.3g}"


def as_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def as_numpys(tensors) -> list[np.ndarray]:
    return [as_numpy(tensor) for tensor in tensors]


def beyond_rounding(came: np.ndarray, truth: np.ndarray, dtype: torch.dtype) -> float:
    """Norm of the error beyond what rounding the result to `dtype` explains."""
    rounding = 0.0 if dtype == torch.float32 else oracle.half_ulp(truth, dtype)
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        rounding = 2 * rounding  # Triton's interpreter cuts bf16 numbers off instead of rounding them
    return float(np.linalg.norm(np.maximum(np.abs(came - truth) - rounding, 0.0)))


def differentiable(block: Block, upstream: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of maps, weights and biases, by autograd."""
    leaves = [[t.detach().requires_grad_() for t in part] for part in (block.maps, block.weights, block.biases)]
    loss = feature_kd_loss(leaves[0], block.teacher, *leaves[1:], backend="triton")
    grads = torch.autograd.grad(loss, sum(leaves, []), torch.tensor(upstream, device=DEVICE))
    return loss.detach(), list(grads)


def at_once(block: Block, upstream: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    scale = torch.tensor(upstream, device=DEVICE)
    loss, *grads = feature_kd_value_and_grad(*block.arguments, grad_scale=scale, backend="triton")
    return loss, [grad for part in grads for grad in part]


def check(block: Block, upstream: float = 1.0) -> None:
    loss, grads = differentiable(block, upstream)
    block.check(loss, grads, upstream)
    value, again = at_once(block, upstream)
    block.check(value, again, upstream)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layouts", ["n", "c", "ncc", "cn"])
def test_layouts_and_dtypes(layouts, dtype):
    check(Block(12, (9, 7, 5, 3), (6, 4), 3, dtype=dtype, layouts=layouts))


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
    "the most that stays resident": dict(teacher=128, students=(102,), size=(3, 3), dtype=torch.float16),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    check(Block(**SHAPES[name]))


@pytest.mark.parametrize("layouts", ["n", "c"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_channels(dtype, layouts):
    # Two tiles of positions, of the pseudo teacher's channels, and of the student's while the difference is made.
    block = Block(140 if dtype == torch.float32 else 129, (70,), (6, 3), 4, dtype=dtype, layouts=layouts)
    block.check(*differentiable(block))


def test_many_channels_of_two_students():
    block = Block(129, (17, 130), (3, 3), 1, dtype=torch.float16)
    block.check(*at_once(block))


def test_the_most_channels():
    block = Block(MAX_CHANNELS, (40,), (2, 2), 1, dtype=torch.float16)
    block.check(*at_once(block))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("teacher", [20, 129])
def test_adapters_in_fp32_of_maps_in_16_bits(dtype, teacher):
    block = Block(teacher, (17,), dtype=dtype, adapters=torch.float32)
    block.check(*differentiable(block))


def test_adapters_in_16_bits_of_maps_in_fp32():
    check(Block(20, (17, 5), adapters=torch.bfloat16))


@pytest.mark.parametrize("teacher, dtype", [(12, dtype) for dtype in DTYPES] + [(129, torch.float16)], ids=str)
def test_upstream_gradient(teacher, dtype):
    block = Block(teacher, (9,), dtype=dtype)
    block.check(*differentiable(block, upstream=-1024.0), upstream=-1024.0)


@pytest.mark.parametrize(
    "dtype, scale", [(torch.float32, 1e12), (torch.bfloat16, 1e12), (torch.float16, 300.0)], ids=str
)
def test_large_values(dtype, scale):
    check(Block(12, (9, 3), dtype=dtype, scale=scale))


def test_half_precision_does_not_lose_small_gradients():
    # dA = 2 D / (rows C0) is below 6e-8, the smallest number of fp16.
    block = Block(16, (4,), (64, 32), 2, dtype=torch.float16, adapters=torch.float32, scale=1e-3)
    loss, _, (weight_grad,), (bias_grad,) = feature_kd_value_and_grad(*block.arguments, backend="triton")
    _, true_weight, true_bias = block.truth().grads
    assert oracle.error(as_numpy(weight_grad), true_weight) < 2e-3
    assert oracle.error(as_numpy(bias_grad), true_bias) < 2e-3


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


@pytest.mark.parametrize("name", VIEWS)
def test_maps_that_are_not_contiguous(name):
    block = Block(12, (9, 3), (4, 6))
    block.maps, block.teacher = [VIEWS[name](x) for x in block.maps], VIEWS[name](block.teacher)
    check(block)


def test_adapters_that_are_not_contiguous_or_convolutions():
    block = Block(12, (9, 5))
    block.weights = [block.weights[0].t().contiguous().t(), block.weights[1][:, :, None, None]]
    block.biases = [torch.stack([b, b], 1)[:, 0] for b in block.biases]
    check(block)


@pytest.mark.parametrize("layouts", ["n", "c"])
def test_gradients_of_maps_keep_their_layout(layouts):
    block = Block(12, (9, 5), layouts=layouts)
    for grad in feature_kd_value_and_grad(*block.arguments, backend="triton")[1]:
        assert grad.is_contiguous(memory_format=torch.channels_last if layouts == "c" else torch.contiguous_format)


@pytest.mark.parametrize("teacher", [12, 129])
def test_ops(teacher):
    block = Block(teacher, (9, 3), layouts="nc", dtype=torch.float16)
    maps, teacher_map, weights, biases = block.arguments
    one = torch.ones((), device=DEVICE)
    torch.library.opcheck(torch.ops.oekd_fast.feature_kd_value, (maps, teacher_map, weights, biases), {"previous": one})
    torch.library.opcheck(
        torch.ops.oekd_fast.feature_kd_value_and_grad, (maps, teacher_map, weights, biases), {"grad_scale": one}
    )


def test_compiled():
    """In one graph, with the same bits."""
    torch.compiler.reset()
    block = Block(12, (9, 3), layouts="nc")

    def value_and_grad(*arguments):
        loss, *grads = feature_kd_value_and_grad(*arguments, backend="triton")
        return [loss, *(grad for part in grads for grad in part)]

    compiled = torch.compile(value_and_grad, fullgraph=True, backend="aot_eager")
    for came, expected in zip(compiled(*block.arguments), value_and_grad(*block.arguments), strict=True):
        assert torch.equal(came, expected)

    def loss_of(maps, teacher, weights, biases):
        return 2.5 * feature_kd_loss(maps, teacher, weights, biases, backend="triton")

    results = []
    for function in (loss_of, torch.compile(loss_of, fullgraph=True, backend="aot_eager")):
        leaves = [[t.detach().requires_grad_() for t in part] for part in (block.maps, block.weights, block.biases)]
        loss = function(leaves[0], block.teacher, *leaves[1:])
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for part in leaves for leaf in part)])
    torch.compiler.reset()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("teacher", [12, 129])
def test_two_calls_give_the_same_bits(teacher):
    block = Block(teacher, (9,), (6, 6), 4, dtype=torch.float16)
    (loss, grads), (again, grads_again) = (at_once(block) for _ in range(2))
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


def test_an_empty_batch_is_as_in_the_reference():
    block = Block(6, (4, 3), batch=0)
    reference = feature_kd_value_and_grad(*block.arguments, backend="reference")
    ours = feature_kd_value_and_grad(*block.arguments, backend="triton")
    assert ours[0].isnan() and reference[0].isnan()
    assert feature_kd_loss(*block.arguments, backend="triton").isnan()
    for came, expected in zip(ours[1:], reference[1:], strict=True):
        for a, b in zip(came, expected, strict=True):
            assert torch.equal(a, b)


def test_nothing_flows_back_into_the_pseudo_teacher():
    block = Block(6, (4, 3))
    block.teacher.requires_grad_()
    assert not feature_kd_loss(*block.arguments, backend="triton").requires_grad
    block.maps[0].requires_grad_()
    feature_kd_loss(*block.arguments, backend="triton").backward()
    assert block.teacher.grad is None and block.maps[0].grad.any()


def test_all_blocks():
    blocks = [Block(12, (9, 3), (4, 4), seed=1), Block(8, (5,), (2, 2), seed=2), Block(6, (), seed=3)]
    for block in blocks:
        for leaf in (*block.maps, *block.weights, *block.biases):
            leaf.requires_grad_()
    arguments = list(zip(*(block.arguments for block in blocks), strict=True))
    loss = feature_kd_loss(*arguments, backend="triton")
    expected = feature_kd_loss(*arguments, backend="reference")
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for block in blocks:
        leaves = [*block.maps, *block.weights, *block.biases]
        if leaves:
            block.check(torch.tensor(block.truth().loss, dtype=torch.float32), [leaf.grad for leaf in leaves])
    value, maps, weights, biases = feature_kd_value_and_grad(*arguments, backend="triton")
    assert torch.equal(value, loss) and not value.requires_grad
    for block, *grads in zip(blocks, maps, weights, biases, strict=True):
        for leaf, grad in zip((*block.maps, *block.weights, *block.biases), sum(grads, ()), strict=True):
            assert torch.equal(leaf.grad, grad)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_value_and_grad_without_students(backend):
    block = Block(6, ())
    loss, *grads = feature_kd_value_and_grad(*block.arguments, backend=backend)
    assert loss == 0 and loss.dtype == torch.float32 and grads == [(), (), ()]


def test_value_and_grad_of_the_reference():
    block = Block(6, (4, 3))
    scale = torch.tensor([3.0], device=DEVICE)
    loss, *grads = feature_kd_value_and_grad(*block.arguments, grad_scale=scale, backend="reference")
    block.check(loss, [grad for part in grads for grad in part], upstream=3.0)
    with torch.inference_mode():
        again = feature_kd_value_and_grad(*Block(6, (4, 3)).arguments, grad_scale=scale, backend="reference")
    assert torch.equal(again[0], loss) and torch.equal(again[1][0], grads[0][0])


def test_the_loss_of_the_reference_is_fp32_for_16_bits():
    block = Block(6, (4, 3), dtype=torch.bfloat16)
    assert feature_kd_loss(*block.arguments, backend="reference").dtype == torch.float32


def test_module():
    block = Block(6, (4, 3))
    convolutions = torch.nn.ModuleList(torch.nn.Conv2d(c, 6, 1) for c in (4, 3)).to(DEVICE)
    features = [[block.teacher], *([x] for x in block.maps)]
    losses = [FeatureKDLoss(backend=backend)(features, [convolutions]) for backend in ("triton", "reference")]
    torch.testing.assert_close(*losses)


def test_differentiable_once():
    block = Block(6, (4,))
    loss = feature_kd_loss([block.maps[0].requires_grad_()], *block.arguments[1:], backend="triton")
    with pytest.raises(
        RuntimeError, match="feature_kd_loss: the compiled backends are differentiable once, got create"
    ):
        torch.autograd.grad(loss, block.maps, create_graph=True)


def changed(**parts):
    block = Block(6, (4, 3))
    for name, change in parts.items():
        setattr(block, name, change(getattr(block, name)))
    return block


UNCOVERED = {
    "fp64": (
        lambda: Block(6, (4,), dtype=torch.float64),
        "block 0: expected float32, bfloat16 or float16 maps, got torch.float64",
    ),
    "two dtypes": (
        lambda: changed(maps=lambda maps: [maps[0], maps[1].half()]),
        "block 0, student map 1: expected dtype torch.float32 as the teacher's map, got torch.float16",
    ),
    "weights in fp64": (
        lambda: changed(weights=lambda weights: [weights[0].double(), weights[1]]),
        "block 0, weight 0: expected float32, bfloat16 or float16, got torch.float64",
    ),
    "too many channels": (
        lambda: Block(MAX_CHANNELS + 1, (4,), (1, 1)),
        f"block 0: expected 1 to {MAX_CHANNELS} channels, got {MAX_CHANNELS + 1}",
    ),
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_what_the_kernels_do_not_cover(name):
    make, message = UNCOVERED[name]
    with pytest.raises(ValueError) as caught:
        feature_kd_loss(*make().arguments, backend="triton")
    assert str(caught.value) == f"backend 'triton': {message}; backend='reference' supports this"


def test_auto_leaves_to_the_reference_what_the_kernels_do_not_cover():
    block = Block(MAX_CHANNELS + 1, (4,), (1, 1))
    assert torch.equal(feature_kd_loss(*block.arguments), feature_kd_loss(*block.arguments, backend="reference"))


def test_blocks_that_the_kernels_do_not_cover_leave_them_the_others(monkeypatch):
    """Each block is what its backend alone makes of it, bit for bit."""
    blocks = [Block(6, (4, 3)), Block(5, (2, 1)), Block(4, (3, 2))]
    given = list(zip(*(block.arguments for block in blocks), strict=True))
    scale = torch.full((1,), 2.0, device=DEVICE)
    backends = ("triton", "reference", "triton")
    alone = [
        feature_kd_value_and_grad(*block.arguments, grad_scale=scale, backend=backend)
        for block, backend in zip(blocks, backends, strict=True)
    ]
    monkeypatch.setattr(feature_ops, "_divide", lambda backend, blocks: ([0, 2], [1]))
    loss, *grads = feature_kd_value_and_grad(*given, grad_scale=scale)
    assert loss.item() == pytest.approx(sum(value.item() for value, *_ in alone), rel=1e-6)
    for part, of_part in enumerate(grads):
        for of_block, (_, *expected) in zip(of_part, alone, strict=True):
            assert all(torch.equal(*pair) for pair in zip(of_block, expected[part], strict=True))

    leaves = [x.requires_grad_() for x in given[0][0] + given[0][1]]
    whole = feature_kd_loss(*given)
    whole.backward(scale[0])
    expected = [*alone[0][1], *alone[1][1]]
    for leaf, grad in zip(leaves, expected, strict=True):
        # The reference differentiates a convolution where it is differentiable, which a GPU may round to TF32.
        torch.testing.assert_close(leaf.grad, grad, rtol=1e-2, atol=1e-2 * grad.abs().max().item())
    assert whole.item() == pytest.approx(loss.item(), rel=1e-2)


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"backend: expected one of \('auto', 'reference', 'triton'\), got 'native'"):
        feature_kd_loss(*Block(6, (4,)).arguments, backend="native")


def test_grad_scale_of_two_elements():
    with pytest.raises(ValueError, match=r"grad_scale: expected a tensor of one element, got shape \[2\]"):
        feature_kd_value_and_grad(*Block(6, (4,)).arguments, grad_scale=torch.ones(2, device=DEVICE))


def test_grad_scale_of_another_type():
    with pytest.raises(TypeError, match="grad_scale: expected a tensor, got float"):
        feature_kd_value_and_grad(*Block(6, (4,)).arguments, grad_scale=2.0)


def test_maps_on_the_cpu_without_the_interpreter():
    code = """
import os
os.environ.pop("TRITON_INTERPRET", None)
import torch
from oekd_fast import feature_kd_loss
x, w, b = torch.ones(1, 2, 3, 3), torch.eye(2), torch.zeros(2)
print(feature_kd_loss([x], x, [w], [b]).item())
try:
    feature_kd_loss([x], x, [w], [b], backend="triton")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "0.0",
        "backend 'triton': expected maps on CUDA, got cpu; TRITON_INTERPRET=1, set before the kernels are first "
        "imported, runs them on the CPU",
    ]


@pytest.mark.parametrize("teacher", [12, 129])
def test_a_launch_can_be_run_again(teacher):
    # As a captured graph does: the counters must be left at zero.
    block = Block(teacher, (9,), (6, 6), 2, dtype=torch.float16)
    loss, *grads = feature_kd_value_and_grad(*block.arguments, backend="triton")
    buffers = tuple([torch.empty_like(grad) for grad in part] for part in grads)
    launch = kernels.feature_kd_launch(*block.arguments, loss=torch.empty_like(loss), out=buffers)
    for _ in range(2):
        launch.run(DEVICE)
        assert not launch.arguments["done"].any()
        assert torch.equal(launch.arguments["loss"], loss)
        for part, again in zip(grads, buffers, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(part, again, strict=True))
            for buffer in again:
                buffer.fill_(float("nan"))


@pytest.mark.parametrize("itemsize", [2, 4])
def test_regimes(itemsize):
    def regime(channels, **options):
        return plan_feature_kd(channels, (25, 12), 1000, itemsize, gradients=True, **options).regime

    most = RESIDENT_CHANNELS[itemsize]
    assert regime(most) == "resident" and regime(most + 1) == "tiled"
    small = {"shared_bytes": 99 * 1024}
    assert regime(most // 2, **small) == "resident" and regime(most // 2 + 1, **small) == "tiled"
    assert plan_feature_kd(16, (most + 1,), 1000, itemsize, gradients=True).regime == "tiled"
    assert plan_feature_kd(most, (25, 12), 1000, itemsize, gradients=False).regime == "value"


def test_no_program_is_without_positions():
    for rows in (1, 63, 64, 65, 100_000):
        for teacher in (16, 64, 512):
            for gradients in (False, True):
                plan = plan_feature_kd(teacher, (12, 3), rows, 2, gradients)
                assert 1 <= plan.chunks <= -(-rows // plan.block)
