"""Functions that the kernels of the ensemble distillation loss share.

Notation for one row: z_j are the logits of student j, zE = sum_j w_j z_j; m is the maximum of z; d = z - m;
e = exp(d / T); s = sum e; s1 = sum exp(d); t = eE / sE, the ensemble's softmax at temperature T.

    CE_j = log s1_j - d_j[y]        KL_j = cross_j / (sE T) + log (s_j / sE),   cross_j = sum_c eE (dE - d_j)
    dL/dz_j = scale * [ce_weight (exp(d_j) / s1_j - y) + kd_weight T (e_j / s_j - t)]  (+ w_j dL/dzE)

If T is a small integer POWER, exp(d) = e^POWER needs no exponential of its own. POWER is 0 for any other T, and for a
T in device memory.

Probabilities, class weights and label smoothing replace y by other labels, whose sum may differ from 1 (labels.py).

The statistics of a row are [2, WIDTH, 4]: for each student, then the ensemble, (m, s, s1, cross) and (sum y d, whether
the label is the first maximum, the divergence if it is not KL_j of the ensemble, the sum of the labels if it is not 1).
They stay in device memory for a backward pass. Their logarithms are computed for many rows at a time: in the pass over
the logits every thread of a row would compute the same ones.

A row r is (o, i) of logits [O, C, I], with r = o * I + i. The strides of rows are (stride,) if one stride leads from
each row to the next, else (stride of o, stride of i, I); the first two are divided by VEC.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
MAXIMUM = tl.constexpr((0, 0))
SUM = tl.constexpr((0, 1))
SUM_1 = tl.constexpr((0, 2))
CROSS = tl.constexpr((0, 3))
AT_LABEL = tl.constexpr((1, 0))
RIGHT = tl.constexpr((1, 1))
DIVERGENCE = tl.constexpr((1, 2))
LABELS_SUM = tl.constexpr((1, 3))
QUADS = tl.constexpr(2)


@triton.jit
def of_student(strides, j: tl.constexpr):
    """Student j's strides out of those of all students, or out of one that they share."""
    return strides[j % len(strides)]


@triton.jit
def row_places(r, row_strides, VEC: tl.constexpr):
    """Offsets of rows r. The factor VEC tells the compiler how rows are aligned."""
    if len(row_strides) == 1:
        at = r * (row_strides[0] * VEC)
    else:
        whole = r.to(tl.int32)  # a division in 64 bits would take many instructions
        o = (whole // row_strides[2]).to(tl.int64)
        i = (whole % row_strides[2]).to(tl.int64)
        at = o * (row_strides[0] * VEC) + i * (row_strides[1] * VEC)
    return at


@triton.jit
def places(r, c, row_strides, class_stride, VEC: tl.constexpr, UNIT: tl.constexpr):
    """Offsets [R, C] of classes c [1, C] in rows r [R]. UNIT is the axis with stride 1: 0, 1, or -1 for neither."""
    if UNIT == 1:
        at = row_places(r, row_strides, VEC)[:, None] + c
    else:
        at = row_places(r, row_strides, VEC)[:, None] + c.to(tl.int64) * class_stride
        if UNIT == 0:
            # Neighbouring threads take neighbouring rows, but none takes several rows at once: their statistics would
            # not fit its registers. Therefore the ends of rows of I do not matter.
            at = tl.multiple_of(tl.max_contiguous(at, (r.shape[0], 1)), (1, 1))
    return at


@triton.jit
def load_tile(pointer, row_strides, class_stride, r, c, mask, other, VEC: tl.constexpr, UNIT: tl.constexpr):
    """Load [R, C] of a tensor beside the logits, such as a teacher's, of any floating dtype, in float32."""
    at = places(r, c, row_strides, class_stride, VEC, UNIT)
    return tl.load(pointer + at, mask=mask, other=other).to(tl.float32)


@triton.jit
def stack(values, fill, WIDTH: tl.constexpr):
    """Stack a tuple of [R, N] into one [R, N, WIDTH], so that one reduction with its barriers serves all."""
    R: tl.constexpr = values[0].shape[0]
    N: tl.constexpr = values[0].shape[1]
    parts = values
    for _ in tl.static_range(WIDTH - len(values)):
        parts = parts + (tl.full([R, N], fill, values[0].dtype),)
    for level in tl.static_range(8):
        if (2 << level) <= WIDTH:
            joined = ()
            for i in tl.static_range(WIDTH >> (level + 1)):
                joined = joined + (tl.join(parts[i], parts[i + (WIDTH >> (level + 1))]).reshape(R, N, 2 << level),)
            parts = joined
    return parts[0]


@triton.jit
def unstack(table, WIDTH: tl.constexpr):
    """Split [R, WIDTH] into a tuple of WIDTH [R]."""
    R: tl.constexpr = table.shape[0]
    parts = (table,)
    for level in tl.static_range(8):
        if (2 << level) <= WIDTH:
            evens = ()
            odds = ()
            for i in tl.static_range(1 << level):
                even, odd = tl.split(parts[i].reshape(R, WIDTH >> (level + 1), 2))
                evens = evens + (even,)
                odds = odds + (odd,)
            parts = evens + odds
    columns = ()
    for i in tl.static_range(WIDTH):
        columns = columns + (parts[i].reshape(R),)
    return columns


@triton.jit
def max_together(a, b):
    """Maxima over axis 1 of two [R, N, WIDTH], in one pass through shared memory."""
    return tl.split(tl.max(tl.join(a, b), 1))


@triton.jit
def sum_together(a, b, c, d):
    """Sums over axis 1 of four [R, N, WIDTH], in one pass through shared memory."""
    first, second = tl.split(tl.sum(tl.join(tl.join(a, b), tl.join(c, d)), 1))
    a, b = tl.split(first)
    c, d = tl.split(second)
    return a, b, c, d


@triton.jit
def by_thread(x, THREADS: tl.constexpr, RUN: tl.constexpr):
    """View [R, C] as [R, runs, THREADS, RUN]: thread t holds [:, :, t, :], runs of RUN neighbouring classes."""
    return x.reshape(x.shape[0], x.shape[1] // (THREADS * RUN), THREADS, RUN)


@triton.jit
def thread_sum(x, THREADS: tl.constexpr, RUN: tl.constexpr):
    """Sums [R, THREADS] over the elements that each thread holds."""
    return tl.sum(tl.sum(by_thread(x, THREADS, RUN), 3), 1)


@triton.jit
def thread_max(x, THREADS: tl.constexpr, RUN: tl.constexpr):
    """Maxima [R, THREADS] over the elements that each thread holds."""
    return tl.max(tl.max(by_thread(x, THREADS, RUN), 3), 1)


@triton.jit
def power(e, POWER: tl.constexpr):
    """e^POWER for POWER 1..4."""
    tl.static_assert(1 <= POWER and POWER <= 4)
    if POWER == 1:
        powered = e
    elif POWER == 2:
        powered = e * e
    elif POWER == 3:
        powered = e * e * e
    else:
        powered = (e * e) * (e * e)
    return powered


@triton.jit
def exp_at_1(e, d, POWER: tl.constexpr):
    """exp(d) from e = exp(d / T)."""
    if POWER == 0:
        powered = tl.exp2(d * LOG2_E)
    else:
        powered = power(e, POWER)
    return powered


@triton.jit
def weight_of(weights, weights_stride, weights_row, r, counts, j: tl.constexpr):
    """The weight w_j: one number, or [R, 1] of a gate."""
    if weights_row is None:
        w = tl.load(weights + j * weights_stride).to(tl.float32)
    else:
        w = tl.load(weights + r * weights_row + j * weights_stride, mask=counts, other=0.0).to(tl.float32)[:, None]
    return w


@triton.jit
def mixture(z, weights, weights_stride, mask, weights_row=None, r=None, counts=None):
    """zE of a tuple of S tiles; -inf where masked. Students with weight 0 are excluded, even if their logits are -inf.

    With a gate, the weights of each counted row r [R] are loaded.
    """
    if weights is None:
        mixed = z[0]
        for j in tl.static_range(1, len(z)):
            mixed += z[j]
        mixed *= 1.0 / len(z)
    else:
        mixed = tl.zeros_like(z[0])
        for j in tl.static_range(len(z)):
            w = weight_of(weights, weights_stride, weights_row, r, counts, j)
            mixed += w * tl.where(w == 0, 0.0, z[j])
        mixed = tl.where(mask, mixed, -float("inf"))
    return mixed


@triton.jit
def logits_at(
    logits, logits_row, logits_class, weights, weights_stride, r, label, valid, VEC: tl.constexpr,
    WIDTH: tl.constexpr, weights_row=None,
):  # fmt: skip
    """z_j[y] and zE[y] of rows r as a table [R, WIDTH]; NaN if the label is not a class."""
    z_y = ()
    for j in tl.static_range(len(logits)):
        at = logits[j] + (row_places(r, of_student(logits_row, j), VEC) + label * of_student(logits_class, j))
        z_y = z_y + (tl.where(valid, tl.load(at, mask=valid, other=0.0).to(tl.float32), float("nan"))[:, None],)
    z_y = z_y + (mixture(z_y, weights, weights_stride, valid[:, None], weights_row, r, valid),)
    return stack(z_y, 0.0, WIDTH).reshape(r.shape[0], WIDTH)


@triton.jit
def in_force(device_scalars, temperature, ce_weight, kd_weight):
    """Temperature, ce_weight and kd_weight: from device memory, fp32 [3], if given; else the launch's arguments."""
    if device_scalars is not None:
        temperature = tl.load(device_scalars)
        ce_weight = tl.load(device_scalars + 1)
        kd_weight = tl.load(device_scalars + 2)
    return temperature, ce_weight, kd_weight


@triton.jit
def common_gradient(mixed_e, per_t, c, label, u, per_label, per_class):
    """The terms that every student's gradient [R, C] subtracts: kd_weight T t + ce_weight y, scaled.

    `u` are the weighted probabilities, or None; `per_class` is the part of y [R, 1] or [R, C] that smoothing adds.
    """
    if u is not None:
        common = tl.fma(mixed_e, per_t[:, None], u * per_label[:, None])  # rounded once, as the compiler does without u
    else:
        common = mixed_e * per_t[:, None]
        if label is not None:
            common += tl.where(c == label[:, None], per_label[:, None], 0.0)
    if per_class is not None:
        common += per_class
    return common


@triton.jit
def student_gradient(e, d, at_t, at_1, common, POWER: tl.constexpr):
    """e at_t + exp(d) at_1 - common. Only POWER 0 reads d.

    `common` is subtracted last: it is the same sum, and of equal terms if there is one class, where the gradient is 0.
    """
    if POWER == 0:
        grad = e * at_t[:, None] + tl.exp2(d * LOG2_E) * at_1[:, None] - common
    elif POWER == 1:
        grad = e * (at_t + at_1)[:, None] - common
    else:
        grad = e * (power(e, POWER - 1) * at_1[:, None] + at_t[:, None]) - common
    return grad


@triton.jit
def ensemble_gradient(mixed_e, gaps, per_t, mean_gap, temperature):
    """dL/dzE [R, C] = kd_weight T t sum_j (log t - log q_j - KL_j), scaled; gaps = sum_j (dE - d_j)."""
    return mixed_e * per_t[:, None] * tl.where(mixed_e > 0, (gaps - mean_gap[:, None]) / temperature, 0.0)


@triton.jit
def place(FIELD: tl.constexpr, column, WIDTH: tl.constexpr):
    """Offset of a student's field within the statistics of a row."""
    return FIELD[0] * (4 * WIDTH) + column * 4 + FIELD[1]


@triton.jit
def store_quads(statistics, r, inside, QUAD: tl.constexpr, a, b, c, d, WIDTH: tl.constexpr):
    """Store four neighbouring fields [R, WIDTH] of rows r at once."""
    quads = tl.join(tl.join(a, c), tl.join(b, d)).reshape(r.shape[0], 4 * WIDTH)
    at = statistics + (r * (QUADS * 4 * WIDTH) + QUAD * (4 * WIDTH))[:, None] + tl.arange(0, 4 * WIDTH)[None, :]
    tl.store(at, quads, mask=inside[:, None])


@triton.jit
def load_field(statistics, r, inside, FIELD: tl.constexpr, WIDTH: tl.constexpr):
    """Load a field [R, WIDTH] of rows r, which another program of this launch may have stored; 1 outside."""
    at = statistics + (r * (QUADS * 4 * WIDTH))[:, None] + place(FIELD, tl.arange(0, WIDTH), WIDTH)[None, :]
    return tl.load(at, mask=inside[:, None], other=1.0, cache_modifier=".cg")
