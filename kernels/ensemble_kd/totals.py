"""Losses of rows from their statistics, their sums, and the statistics of the call."""

from __future__ import annotations

import triton
import triton.language as tl

from .labels import divided, load_labels, weight_of_labels
from .row_statistics import (
    AT_LABEL,
    CROSS,
    DIVERGENCE,
    LABELS_SUM,
    RIGHT,
    SUM,
    SUM_1,
    load_field,
)

# Sums [WIDTH] of a program: CE, KL (its ensemble column counts rows), hits; with class weights, those of the labels.
SUMS = tl.constexpr(4)


@triton.jit
def divergence_of(s, cross, temperature, STUDENTS: tl.constexpr, WIDTH: tl.constexpr):
    """KL [R, WIDTH] of each student from the ensemble."""
    mixed_s = tl.sum(tl.where(tl.arange(0, WIDTH)[None, :] == STUDENTS, s, 0.0), 1)[:, None]
    kl = cross / (mixed_s * temperature) + tl.log(s / mixed_s)
    return tl.maximum(kl, 0.0, propagate_nan=tl.PropagateNan.ALL)  # a negative result of rounding becomes 0


@triton.jit
def cross_entropy_of(s1, at_label, labels_sum):
    """CE [R, WIDTH] of each student and the ensemble; `labels_sum` is None for 1."""
    log_sum = tl.log(s1)
    if labels_sum is not None:
        log_sum = labels_sum * log_sum
    return log_sum - at_label


@triton.jit
def no_sums(R: tl.constexpr, WIDTH: tl.constexpr, SUMS: tl.constexpr):
    """SUMS zeros [R, WIDTH]."""
    return (tl.zeros([R, WIDTH], tl.float32),) * SUMS


@triton.jit
def add_losses(sums, counts, ce, kl, right, label_weight, STUDENTS: tl.constexpr, WIDTH: tl.constexpr):
    """Add losses and hits [R, WIDTH] of the counted rows to `sums`; ce and label_weight [R] may be None."""
    kl = tl.where(tl.arange(0, WIDTH)[None, :] == STUDENTS, 1.0, kl)
    added = (sums[0], sums[1] + tl.where(counts[:, None], kl, 0.0), sums[2])
    if ce is not None:
        ce = tl.where(counts[:, None], ce, 0.0)
        added = (sums[0] + ce, added[1], sums[2] + tl.where(counts[:, None], right, 0.0))
    if len(sums) > 3:
        added = added + (sums[3] + tl.where(counts, label_weight, 0.0)[:, None],)
    return added


@triton.jit
def store_losses(
    rows_losses, r, inside, counts, of_ce, of_kl, temperature, ce_weight, kd_weight, ensemble_ce_weight, rows,
    STUDENTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Store the losses of rows r: loss [rows], ce and kd [S, rows], ensemble_ce [rows]; 0 for ignored rows."""
    loss, ce, kd, ensemble_ce = rows_losses
    column = tl.arange(0, WIDTH)[None, :]
    student = inside[:, None] & (column < STUDENTS)
    at = column.to(tl.int64) * rows + r[:, None]
    of_kl = tl.where(counts[:, None] & (column < STUDENTS), of_kl * (temperature * temperature), 0.0)
    weighted = kd_weight * of_kl
    if of_ce is None:
        of_ce = tl.zeros_like(of_kl)
    else:
        of_ce = tl.where(counts[:, None] & (column <= STUDENTS), of_ce, 0.0)
        weighted += tl.where(column < STUDENTS, ce_weight * of_ce, 0.0)
        if ensemble_ce_weight is not None:
            weighted += tl.where(column == STUDENTS, ensemble_ce_weight * of_ce, 0.0)
    tl.store(ce + at, of_ce, mask=student)
    tl.store(kd + at, of_kl, mask=student)
    tl.store(ensemble_ce + r[:, None] + 0 * column, of_ce, mask=inside[:, None] & (column == STUDENTS))
    tl.store(loss + r, tl.sum(weighted, 1), mask=inside)


@triton.jit
def add_rows(
    sums, rows_losses, row_statistics, r, inside, target, target_stride, class_weights, rows, temperature, ce_weight,
    kd_weight, ensemble_ce_weight, ignore_index, CLASSES: tl.constexpr, STUDENTS: tl.constexpr, WIDTH: tl.constexpr,
    LABELLED: tl.constexpr, WEIGHTED: tl.constexpr, READY: tl.constexpr,
):  # fmt: skip
    """Add the losses and hits of rows r to `sums`, from their statistics, which this launch has stored.

    LABELLED: rows have labels. WEIGHTED: their sums are not 1. READY: the divergences are part of the statistics.
    `rows_losses` is () or the pointers of `store_losses`.
    """
    counts = inside
    label_weight = None
    if target is not None:
        label = load_labels(target, r.to(tl.int64) * target_stride, inside, ignore_index)
        counts &= label != ignore_index
        if len(class_weights) > 0:
            valid = counts & (label >= 0) & (label < CLASSES)
            label_weight = weight_of_labels(class_weights, label, valid)
    r = r.to(tl.int64)
    if READY:
        kl = load_field(row_statistics, r, counts, DIVERGENCE, WIDTH)
    else:
        s = load_field(row_statistics, r, counts, SUM, WIDTH)
        kl = divergence_of(s, load_field(row_statistics, r, counts, CROSS, WIDTH), temperature, STUDENTS, WIDTH)
    ce = None
    right = None
    if LABELLED:
        s1 = load_field(row_statistics, r, counts, SUM_1, WIDTH)
        at_label = load_field(row_statistics, r, counts, AT_LABEL, WIDTH)
        labels_sum = load_field(row_statistics, r, counts, LABELS_SUM, WIDTH) if WEIGHTED else None
        ce = cross_entropy_of(s1, at_label, labels_sum)
        right = load_field(row_statistics, r, counts, RIGHT, WIDTH)
    if len(rows_losses) > 0:
        store_losses(
            rows_losses, r, inside, counts, ce, kl, temperature, ce_weight, kd_weight, ensemble_ce_weight, rows,
            STUDENTS, WIDTH,
        )  # fmt: skip
    return add_losses(sums, counts, ce, kl, right, label_weight, STUDENTS, WIDTH)


@triton.jit
def store_sums(partials, sums, WIDTH: tl.constexpr):
    """Sum `sums` [R, WIDTH] over R and store them in this program's row of `partials` [programs, 4 WIDTH]."""
    at = partials + tl.program_id(0) * (SUMS * WIDTH) + tl.arange(0, WIDTH)
    for i in tl.static_range(len(sums)):
        tl.store(at + i * WIDTH, tl.sum(sums[i], 0))
    for i in tl.static_range(len(sums), SUMS):
        tl.store(at + i * WIDTH, tl.zeros([WIDTH], tl.float32))


@triton.jit
def write_statistics(
    partials, num_items, loss, ce, kd, ensemble_ce, correct, counted, temperature, ce_weight, kd_weight,
    ensemble_ce_weight, STUDENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, MEAN: tl.constexpr,
    PER_ROW: tl.constexpr, DIVISORS: tl.constexpr,
):  # fmt: skip
    """Sum `partials` [programs, 4 WIDTH] in a fixed order and write the statistics of the loss.

    PER_ROW: those of the rows have been written. DIVISORS 2: cross-entropies are divided by the weights of the labels.
    """
    column = tl.arange(0, 4 * WIDTH)
    total = tl.zeros([4 * WIDTH], tl.float64)
    # All loads of a chunk are issued together: only this program still runs, so its time is the latency of its loads.
    for first in range(0, tl.num_programs(0), CHUNK):
        program = first + tl.arange(0, CHUNK)[:, None]
        at = partials + program * (4 * WIDTH) + column[None, :]
        # Other programs of this launch wrote these values, so they are not read from the L1 cache.
        part = tl.load(at, mask=program < tl.num_programs(0), other=0.0, cache_modifier=".cg")
        total += tl.sum(part, 0).to(tl.float64)
    kind, student = column // WIDTH, column % WIDTH
    number = tl.sum(tl.where(column == WIDTH + STUDENTS, total, 0.0), 0)
    value = total * tl.where(kind == 1, temperature * temperature, 1.0)
    of_labels = number
    if DIVISORS == 2:
        of_labels = tl.sum(tl.where(column == 3 * WIDTH, total, 0.0), 0)
    if MEAN:
        if num_items is not None:
            value = divided(value, tl.load(num_items).to(tl.float64), False)
        elif DIVISORS == 2:
            value = tl.where(kind == 0, divided(value, of_labels, False), divided(value, number, True))
        else:
            value = divided(value, number, True)
    if not PER_ROW:
        cross_entropy = (kind == 0) & (student < STUDENTS)
        divergence = (kind == 1) & (student < STUDENTS)
        weighted = tl.sum(tl.where(cross_entropy, ce_weight * value, 0.0), 0)
        weighted += tl.sum(tl.where(divergence, kd_weight * value, 0.0), 0)
        if ensemble_ce_weight is not None:
            weighted += tl.sum(tl.where(column == STUDENTS, ensemble_ce_weight * value, 0.0), 0)
        tl.store(loss, weighted.to(tl.float32))
        tl.store(ce + student, value.to(tl.float32), mask=cross_entropy)
        tl.store(kd + student, value.to(tl.float32), mask=divergence)
        tl.store(ensemble_ce + 0 * column, value.to(tl.float32), mask=column == STUDENTS)
    tl.store(correct + student, total.to(tl.int64), mask=(kind == 2) & (student <= STUDENTS))
    if counted is not None:
        tl.store(counted, number.to(tl.float32))
        if DIVISORS == 2:
            tl.store(counted + 1, of_labels.to(tl.float32))
