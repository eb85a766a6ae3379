"""Functions that the kernels of the intermediate loss share.

A map [B, C, H, W] is seen as rows = B * H * W positions of C channels. Its layout is (image, position, channel): the
strides of B, of H * W as one axis, and of C. Layouts and numbers of channels are compile-time constants, so that the
compiler uses wide loads where the alignment allows them. The difference D = X W^T + bias - T is [rows, C0]; no kernel
stores it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def places(first, PIXELS: tl.constexpr, LAYOUT: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of positions first, first + 1, ...: a start (int64), and each position relative to it (int32 [BLOCK])."""
    i = tl.arange(0, BLOCK)
    if LAYOUT[0] == PIXELS * LAYOUT[1]:
        return tl.cast(first, tl.int64) * LAYOUT[1], i * LAYOUT[1]
    image = first // PIXELS
    i += first - image * PIXELS
    if PIXELS % BLOCK == 0:
        return tl.cast(image, tl.int64) * LAYOUT[0], i * LAYOUT[1]
    return tl.cast(image, tl.int64) * LAYOUT[0], i // PIXELS * LAYOUT[0] + i % PIXELS * LAYOUT[1]


@triton.jit
def load_map(
    source, first, rows, channel, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Load positions from `first` and channels from `channel`, [BLOCK, WIDTH]; 0 outside the map."""
    start, at = places(first, PIXELS, LAYOUT, BLOCK)
    c = channel + tl.arange(0, WIDTH)
    mask = (first + tl.arange(0, BLOCK) < rows)[:, None]
    if CHANNELS % WIDTH != 0:
        mask = mask & (c < CHANNELS)[None, :]
    return tl.load(source + start + (at[:, None] + (c * LAYOUT[2])[None, :]), mask=mask, other=0.0)


@triton.jit
def store_map(
    target, value, first, rows, channel, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Store `value` [BLOCK, WIDTH] at positions from `first` and channels from `channel`, where they are in the map."""
    start, at = places(first, PIXELS, LAYOUT, BLOCK)
    c = channel + tl.arange(0, WIDTH)
    mask = (first + tl.arange(0, BLOCK) < rows)[:, None]
    if CHANNELS % WIDTH != 0:
        mask = mask & (c < CHANNELS)[None, :]
    at = target + start + (at[:, None] + (c * LAYOUT[2])[None, :])
    tl.store(at, value.to(target.dtype.element_ty), mask=mask)


@triton.jit
def load_weight(
    weight, c0, cj, C0: tl.constexpr, CJ: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, DOT: tl.constexpr
):
    """Load [OUT, IN] of the adapter's weight [C0, CJ] from (c0, cj), in the dtype DOT of products; 0 outside."""
    o, i = c0 + tl.arange(0, OUT), cj + tl.arange(0, IN)
    mask = (o < C0)[:, None] & (i < CJ)[None, :]
    return tl.load(weight + o[:, None] * CJ + i[None, :], mask=mask, other=0.0).to(DOT)


@triton.jit
def load_bias(bias, c0, C0: tl.constexpr, OUT: tl.constexpr):
    """Load [OUT] of the adapter's bias [C0] from c0 as float32; 0 outside."""
    o = c0 + tl.arange(0, OUT)
    return tl.load(bias + o, mask=o < C0, other=0.0).to(tl.float32)


@triton.jit
def subtract(adapted, bias, teacher, first, rows, BLOCK: tl.constexpr):
    """D from X W^T. Beyond the last position, where X and T are read as 0 but the bias is not, D is 0."""
    inside = first + tl.arange(0, BLOCK) < rows
    return tl.where(inside[:, None], adapted + bias[None, :] - teacher.to(tl.float32), 0.0)


@triton.jit
def difference(
    student, weight, bias, teacher,  # a student's map, [C0, CJ], [C0], the pseudo teacher's map
    first, rows, c0,
    PIXELS: tl.constexpr, C0: tl.constexpr, CJ: tl.constexpr, LAYOUT: tl.constexpr, TEACHER_LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """D [BLOCK, OUT] at positions from `first` and channels from `c0`, computed over IN student channels at a time."""
    adapted = tl.zeros([BLOCK, OUT], tl.float32)
    for cj in range(0, CJ, IN):
        x = load_map(student, first, rows, cj, PIXELS, CJ, LAYOUT, BLOCK, IN).to(DOT)
        w = load_weight(weight, c0, cj, C0, CJ, OUT, IN, DOT)
        adapted = tl.dot(x, tl.trans(w), adapted, input_precision="tf32x3")
    t = load_map(teacher, first, rows, c0, PIXELS, C0, TEACHER_LAYOUT, BLOCK, OUT)
    return subtract(adapted, load_bias(bias, c0, C0, OUT), t, first, rows, BLOCK)


@triton.jit
def gradient_scale(grad_scale, factor):
    """The factor of D in the gradients: 2 / (rows C0) times the upstream gradient, which is in device memory."""
    if grad_scale is None:
        return factor
    return factor * tl.load(grad_scale).to(tl.float32)


@triton.jit
def write_loss(loss, previous, squares, count, factor, BLOCK: tl.constexpr):
    """Write loss = previous + sum of `squares` [count] / (rows C0), summed in a fixed order."""
    i = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for at in range(0, count, BLOCK):
        # Other programs of this launch wrote these values, so they are not read from the L1 cache.
        total += tl.load(squares + at + i, mask=at + i < count, other=0.0, cache_modifier=".cg")
    value = tl.sum(total, 0) * (0.5 * factor)
    if previous is not None:
        value += tl.load(previous)
    tl.store(loss, value)


@triton.jit
def add_up(at, inside, count, STRIDE: tl.constexpr, PIECE: tl.constexpr):
    """Sum `count` shares that are STRIDE apart, [PIECE], in a fixed order; `at` points at the first share."""
    total = tl.zeros([PIECE], tl.float32)
    for first in range(0, count, 8):
        share = first + tl.arange(0, 8)
        mask = inside[None, :] & (share < count)[:, None]
        # Other programs of this launch wrote these values, so they are not read from the L1 cache.
        total += tl.sum(
            tl.load(at[None, :] + share.to(tl.int64)[:, None] * STRIDE, mask=mask, other=0.0, cache_modifier=".cg"), 0
        )
    return total


@triton.jit
def write_gradients(
    weight_grad, bias_grad,  # [C0, CJ], row-major; [C0]
    shares, count, c0, cj, scale,  # fp32 [count, STRIDE]: dW [OUT, IN], then db [OUT]
    STRIDE: tl.constexpr, C0: tl.constexpr, CJ: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
    PIECE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the adapter at channels from (c0, cj): scale times the sum of the shares."""
    for at in range(0, OUT * (IN + 1), PIECE):
        e = at + tl.arange(0, PIECE)
        total = scale * add_up(shares + e, e < OUT * (IN + 1), count, STRIDE, PIECE)
        o, i = c0 + e // IN, cj + e % IN
        mask = (e < OUT * IN) & (o < C0) & (i < CJ)
        tl.store(weight_grad + o * CJ + i, total.to(weight_grad.dtype.element_ty), mask=mask)
        o = c0 + e - OUT * IN
        mask = (e >= OUT * IN) & (e < OUT * (IN + 1)) & (o < C0) & (cj == 0)
        tl.store(bias_grad + o, total.to(bias_grad.dtype.element_ty), mask=mask)
