"""Labels of rows: class indices of any integer dtype, or probabilities; class weights; the divisors of the means.

A row with the distribution t of labels, which is one-hot for a class index, has with class weights w (1 without) and
label smoothing eps

    y_c = (1 - eps) u_c + eps w_c / C,  u_c = w_c t_c        Y = sum y = U + eps (mean w - U),  U = sum u
    CE = Y log s1 - sum y_c d_c        dCE/dz = Y softmax(z) - y

Terms with u_c = 0 or w_c = 0 are 0 even at a logit of -inf. One-hot probabilities are computed by the same operations
as class indices, so that the results have the same bits.

`class_weights` is () or the pointers (w [C], mean of w), the second only for label smoothing. `probabilities`,
`probabilities_row` and `probabilities_class` are (), or hold one pointer [rows, CLASSES], its row strides and its class
stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .row_statistics import load_tile


@triton.jit
def load_labels(target, at, inside, ignore_index):
    """Load labels [R], of any integer dtype, as int64; ignore_index outside."""
    if target.dtype.element_ty == tl.int64:
        labels = tl.load(target + at, mask=inside, other=ignore_index)
    else:
        # ignore_index may be no value of the dtype of the labels.
        labels = tl.where(inside, tl.load(target + at, mask=inside, other=0).to(tl.int64), ignore_index)
    return labels


@triton.jit
def load_probabilities(
    probabilities, probabilities_row, probabilities_class, r, c, mask, VEC: tl.constexpr, UNIT: tl.constexpr
):  # fmt: skip
    """Load the probabilities [R, C] of rows r; 0 where masked."""
    return load_tile(probabilities[0], probabilities_row[0], probabilities_class[0], r, c, mask, 0.0, VEC, UNIT)


@triton.jit
def first_largest(p, c, mask, CLASSES: tl.constexpr):
    """The first class [R] with the largest of the probabilities p [R, C]; CLASSES if all are NaN."""
    p = tl.where(mask, p, -1.0)
    most = tl.max(p, 1)[:, None]
    return tl.min(tl.where(p == most, c, CLASSES), 1).to(tl.int64)


@triton.jit
def load_class_weights(class_weights, c, CLASSES: tl.constexpr):
    """Load the weights [1, C] of classes c; 0 outside."""
    return tl.load(class_weights[0] + c, mask=c < CLASSES, other=0.0).to(tl.float32)


@triton.jit
def weight_of_labels(class_weights, label, valid):
    """The class weights [R] of the labels; 0 for a label that is not a class."""
    return tl.load(class_weights[0] + label, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def total_of_labels(u, class_weights, label_smoothing, SMOOTH: tl.constexpr):
    """Y [R] from U [R]."""
    total = u
    if SMOOTH:
        mean = 1.0
        if len(class_weights) > 0:
            mean = tl.load(class_weights[1]).to(tl.float32)
        total = u + label_smoothing * (mean - u)
    return total


@triton.jit
def weighted(weights, d):
    """weights * d; 0 where a weight is 0, even if d is -inf."""
    return tl.where(weights != 0, weights * d, 0.0)


@triton.jit
def smoothed(at_label, even, label_smoothing, CLASSES: tl.constexpr):
    """sum y d from sum u d and sum w d."""
    return (1.0 - label_smoothing) * at_label + label_smoothing / CLASSES * even


@triton.jit
def of_every_class(per_label, w, label_smoothing, CLASSES: tl.constexpr):
    """per_label eps w / C, the part of the labels that smoothing gives to every class: [R, C], or [R, 1] without w."""
    part = (per_label * (label_smoothing / CLASSES))[:, None]
    if w is not None:
        part = part * w
    return part


@triton.jit
def count_labels(
    num_items, number, target, target_stride, class_weights, rows, ignore_index, CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
):  # fmt: skip
    """The divisors of the distillation terms and of the cross-entropies.

    They are `num_items` if given; else the number of rows that are not ignored, and the sum of the class weights of
    their labels, or the same number without class weights or with probabilities. Both are read from `number` if given,
    else every program counts them.
    """
    if num_items is not None:
        total = tl.load(num_items).to(tl.float32)
        of_labels = total
    elif len(number) > 0:
        total = tl.load(number[0]).to(tl.float32)
        of_labels = tl.load(number[len(number) - 1]).to(tl.float32)
    elif target is None:
        total = rows.to(tl.float32)
        of_labels = total
    else:
        counts = tl.zeros([LABELS], tl.int32)
        weights = tl.zeros([LABELS], tl.float32)
        for first in range(0, rows, LABELS):
            r = first + tl.arange(0, LABELS)
            labels = load_labels(target, r.to(tl.int64) * target_stride, r < rows, ignore_index)
            counts += (labels != ignore_index).to(tl.int32)
            if len(class_weights) > 0:
                valid = (labels != ignore_index) & (labels >= 0) & (labels < CLASSES)
                weights += weight_of_labels(class_weights, labels, valid)
        total = tl.sum(counts, 0).to(tl.float32)
        of_labels = tl.sum(weights, 0) if len(class_weights) > 0 else total
    return total, of_labels


@triton.jit
def divided(value, divisor, COUNTED: tl.constexpr):
    """value / divisor, 0 if the divisor is 0. COUNTED: the divisor is a number of rows, and `value` is 0 if it is."""
    if COUNTED:
        value /= tl.maximum(divisor, 1.0)
    else:
        value = tl.where(divisor > 0, value / divisor, 0.0)
    return value
