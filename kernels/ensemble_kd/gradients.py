"""Gradients from saved row statistics: the backward kernel of the differentiable loss, with 1 read and 1 write.

The second pass of the streamed loss shares ``write_gradients``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.arrival import last_to_arrive
from ..common.delay import delay
from .labels import (
    count_labels,
    divided,
    load_class_weights,
    load_labels,
    of_every_class,
    weight_of_labels,
)
from .row_statistics import (
    CROSS,
    LABELS_SUM,
    LOG2_E,
    MAXIMUM,
    QUADS,
    SUM,
    SUM_1,
    common_gradient,
    ensemble_gradient,
    in_force,
    mixture,
    of_student,
    place,
    places,
    student_gradient,
    weight_of,
)


@triton.jit
def load_columns(row_statistics, r, counts, FIELD: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """Load a field of rows r as a tuple of COLUMNS [R]; 1 for ignored rows."""
    columns = ()
    for j in tl.static_range(COLUMNS):
        at = row_statistics + r * (QUADS * 4 * WIDTH) + place(FIELD, j, WIDTH)
        columns = columns + (tl.load(at, mask=counts, other=1.0, cache_modifier=".cg"),)
    return columns


@triton.jit
def upstream_scales(
    grad_scale, grad_scale_row, num_items, total, of_labels, MEAN: tl.constexpr, DIVISORS: tl.constexpr
):
    """The factors of all gradients of the distillation terms and of the cross-entropies.

    They are the upstream gradient, divided by `total` and `of_labels` if MEAN.
    """
    scale = 1.0
    if grad_scale is not None and grad_scale_row is None:
        scale = tl.load(grad_scale).to(tl.float32)
    of_ce = scale
    if MEAN:
        scale = divided(scale, total, num_items is None)
        of_ce = divided(of_ce, of_labels, False) if DIVISORS == 2 else scale
    return scale, of_ce


@triton.jit
def scales_of_gradients(
    grad_scale, grad_scale_row, num_items, number, target, target_stride, class_weights, rows, ignore_index,
    CLASSES: tl.constexpr, LABELS: tl.constexpr, MEAN: tl.constexpr, DIVISORS: tl.constexpr,
):  # fmt: skip
    """The factors of `upstream_scales`, with the divisors counted or read by `count_labels`."""
    total = 1.0
    of_labels = 1.0
    if MEAN:
        total, of_labels = count_labels(
            num_items, number, target, target_stride, class_weights, rows, ignore_index, CLASSES, LABELS
        )
    return upstream_scales(grad_scale, grad_scale_row, num_items, total, of_labels, MEAN, DIVISORS)


@triton.jit
def scales_of_rows(scales, grad_scale, grad_scale_row, r, counts):
    """The factors of rows r: the same two for all, or [R] if each row has an upstream gradient of its own."""
    if grad_scale_row is not None:
        scale = tl.load(grad_scale + r * grad_scale_row, mask=counts, other=0.0).to(tl.float32)
        scales = scale, scale
    return scales


@triton.jit
def student_weight(
    weights, weights_stride, j: tl.constexpr, STUDENTS: tl.constexpr, weights_row=None, r=None, counts=None
):
    """The weight w_j of student j in the ensemble: one number, or [R, 1] of a gate."""
    w = 1.0 / STUDENTS
    if weights is not None:
        w = weight_of(weights, weights_stride, weights_row, r, counts, j)
    return w


@triton.jit
def write_gradients(
    logits, logits_row, logits_class, grads, grads_row, grads_class, weights, weights_stride, row_statistics,
    weight_sums, r, inside, counts, label, class_weights, first, tiles, scales, temperature, ce_weight,
    kd_weight, label_smoothing, CLASSES: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr, UNIT: tl.constexpr,
    WIDTH: tl.constexpr, POWER: tl.constexpr, SMOOTH: tl.constexpr, DETACH: tl.constexpr,
):  # fmt: skip
    """Write the gradients of rows r [R] in classes first .. first + tiles * BLOCK.

    The loop starts with the last tile, which is the most likely to be cached. Returns `weight_sums` with this part
    added: a tuple of S sums [R, BLOCK] of dL/dzE z_j, or () if the gradient of the weights is not computed.
    """
    S: tl.constexpr = len(logits)
    k = LOG2_E / temperature
    m = load_columns(row_statistics, r, counts, MAXIMUM, S + 1, WIDTH)
    s = load_columns(row_statistics, r, counts, SUM, S + 1, WIDTH)
    s1 = load_columns(row_statistics, r, counts, SUM_1, S, WIDTH)
    WEIGHTED: tl.constexpr = len(class_weights) > 0
    scale, of_ce = scales
    own = of_ce * ce_weight
    if WEIGHTED:
        own = own * load_columns(row_statistics, r, counts, LABELS_SUM, 1, WIDTH)[0]
    at_t = ()
    at_1 = ()
    for j in tl.static_range(S):
        at_t = at_t + (tl.where(counts, scale * kd_weight * temperature / s[j], 0.0),)
        at_1 = at_1 + (tl.where(counts, own / s1[j], 0.0),)
    per_t = tl.where(counts, scale * kd_weight * temperature / s[S], 0.0)
    per_label = tl.where(counts, of_ce * ce_weight, 0.0)
    at_label = per_label * (1.0 - label_smoothing)
    if WEIGHTED:
        at_label *= weight_of_labels(class_weights, label, counts & (label >= 0) & (label < CLASSES))
    if not DETACH:
        cross = load_columns(row_statistics, r, counts, CROSS, S + 1, WIDTH)
        mean_gap = cross[S]  # 0
        for j in tl.static_range(S):
            mean_gap += cross[j]
        mean_gap = tl.where(counts, mean_gap / s[S], 0.0)

    for i in range(0, tiles):
        c = first + (tiles - 1 - i) * BLOCK + tl.arange(0, BLOCK)[None, :]
        mask = counts[:, None] & (c < CLASSES)
        z = ()
        for j in tl.static_range(S):
            at = places(r, c, of_student(logits_row, j), of_student(logits_class, j), VEC, UNIT)
            # This is the last use of the logits: the L2 cache should keep those of other rows.
            loaded = tl.load(logits[j] + at, mask=mask, other=-float("inf"), eviction_policy="evict_first")
            z = z + (loaded.to(tl.float32),)
        mixed_d = mixture(z, weights, weights_stride, mask) - m[S][:, None]
        mixed_e = tl.exp2(mixed_d * k)
        w = None
        per_class = None
        if WEIGHTED:
            w = load_class_weights(class_weights, c, CLASSES)
        if SMOOTH:
            per_class = of_every_class(per_label, w, label_smoothing, CLASSES)
        common = common_gradient(mixed_e, per_t, c, label, None, at_label, per_class)
        if not DETACH:
            gaps = S * mixed_d
            for j in tl.static_range(S):
                gaps -= z[j] - m[j][:, None]
            through = ensemble_gradient(mixed_e, gaps, per_t, mean_gap, temperature)
        sums = ()
        for j in tl.static_range(S):
            d = z[j] - m[j][:, None]
            grad = student_gradient(tl.exp2(d * k), d, at_t[j], at_1[j], common, POWER)
            if not DETACH:
                grad += student_weight(weights, weights_stride, j, S) * through
                if len(weight_sums) > 0:
                    # 0 * -inf would be NaN; a class that the ensemble excludes adds 0.
                    sums = sums + (weight_sums[j] + tl.where(through != 0, through * z[j], 0.0),)
            at = places(r, c, of_student(grads_row, j), of_student(grads_class, j), VEC, UNIT)
            written = inside[:, None] & (c < CLASSES)
            tl.store(grads[j] + at, grad.to(grads[j].dtype.element_ty), mask=written, eviction_policy="evict_first")
        weight_sums = sums
    return weight_sums


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def gradients(
    logits, logits_row, logits_class,  # S pointers [rows, CLASSES], row strides, class strides; see row_statistics
    grads, grads_row, grads_class,  # the same for the gradients
    target, target_stride,  # integers [rows], or None
    class_weights,  # (w [CLASSES], mean of w), or () without
    weights, weights_stride,  # [S], or None for 1/S each
    grad_scale, grad_scale_row,  # one element and None; or [rows] and its stride
    device_scalars,  # fp32 [3] in place of temperature, ce_weight, kd_weight; or None
    num_items,  # one element that replaces the divisors, or None
    counted,  # fp32 [DIVISORS], the divisors
    row_statistics,  # fp32 [rows, QUADS, WIDTH, 4]
    weights_grad,  # fp32 [S] dL/dw, or None
    partials,  # fp32 [programs, S], or None
    done,  # int32 [1], 0 before and after, or None
    delays,  # for stress tests, see common/delay.py; or None
    rows, temperature, ce_weight, kd_weight, label_smoothing, ignore_index,
    CLASSES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr, VEC: tl.constexpr,
    UNIT: tl.constexpr, WIDTH: tl.constexpr, POWER: tl.constexpr, SMOOTH: tl.constexpr, MEAN: tl.constexpr,
    DETACH: tl.constexpr, DIVISORS: tl.constexpr,
):  # fmt: skip
    """Write the gradients of all rows, and dL/dw if `weights_grad` is given."""
    S: tl.constexpr = len(logits)
    CHUNKS: tl.constexpr = (CLASSES + TILES * BLOCK - 1) // (TILES * BLOCK)
    temperature, ce_weight, kd_weight = in_force(device_scalars, temperature, ce_weight, kd_weight)
    if num_items is not None:
        total = tl.load(num_items).to(tl.float32)
        of_labels = total
    else:
        total = tl.load(counted)
        of_labels = tl.load(counted + 1) if DIVISORS == 2 else total
    scales = upstream_scales(grad_scale, grad_scale_row, num_items, total, of_labels, MEAN, DIVISORS)
    weight_sums = ()
    if weights_grad is not None:
        for _ in tl.static_range(S):
            weight_sums = weight_sums + (tl.zeros([ROWS, BLOCK], tl.float32),)
    for item in range(tl.program_id(0), tl.cdiv(rows, ROWS) * CHUNKS, tl.num_programs(0)):
        if delays is not None:
            delay(delays, item)
        r = (item // CHUNKS) * ROWS + tl.arange(0, ROWS)
        inside = r < rows
        r = r.to(tl.int64)
        counts = inside
        label = None
        if target is not None:
            label = load_labels(target, r * target_stride, inside, ignore_index)
            counts = inside & (label != ignore_index)
        weight_sums = write_gradients(
            logits, logits_row, logits_class, grads, grads_row, grads_class, weights, weights_stride, row_statistics,
            weight_sums, r, inside, counts, label, class_weights, (item % CHUNKS) * (TILES * BLOCK),
            TILES, scales_of_rows(scales, grad_scale, grad_scale_row, r, counts), temperature, ce_weight, kd_weight,
            label_smoothing, CLASSES, BLOCK, VEC, UNIT, WIDTH, POWER, SMOOTH, DETACH,
        )  # fmt: skip
    if weights_grad is not None:
        for j in tl.static_range(S):
            tl.store(partials + tl.program_id(0) * S + j, tl.sum(tl.sum(weight_sums[j], 1), 0))
        if last_to_arrive(done, tl.num_programs(0)):
            for j in tl.static_range(S):
                total = tl.zeros([128], tl.float64)
                for first in range(0, tl.num_programs(0), 128):
                    program = first + tl.arange(0, 128)
                    at = partials + program * S + j
                    total += tl.load(at, mask=program < tl.num_programs(0), other=0.0, cache_modifier=".cg")
                tl.store(weights_grad + j, tl.sum(total, 0).to(tl.float32))
