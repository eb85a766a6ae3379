"""The loss for rows too long for the registers: each logit is still read from device memory about once.

Work is divided into tickets, which programs take in order: the statistics of a chunk of a row, and, LAG rows later, the
gradients of that chunk. The second pass therefore finds the logits in the L2 cache, and many programs share a long row.
A program waits only for tickets taken before its own, and their holders never wait for it, so the kernel cannot
deadlock whichever programs run at the same time. The result does not depend on which program takes which ticket.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.arrival import arrives_last, last_to_arrive
from ..common.delay import delay
from .gradients import scales_of_gradients, scales_of_rows, write_gradients
from .labels import (
    load_class_weights,
    smoothed,
    total_of_labels,
    weight_of_labels,
    weighted,
)
from .row_statistics import (
    AT_LABEL,
    CROSS,
    DIVERGENCE,
    LOG2_E,
    MAXIMUM,
    QUADS,
    RIGHT,
    SUM,
    SUM_1,
    by_thread,
    exp_at_1,
    in_force,
    logits_at,
    max_together,
    mixture,
    of_student,
    place,
    places,
    stack,
    store_quads,
    sum_together,
    thread_max,
    thread_sum,
)
from .totals import add_rows, no_sums, store_sums, write_statistics

# Fields of a chunk: those of a row, but three hold the maximum before the label, and with label smoothing sum w d and
# sum w for class weights w, or 1.
EARLY = AT_LABEL
EVEN = RIGHT
SEEN = DIVERGENCE
LOWEST = tl.constexpr(-1e38)  # below all logits of interest, and finite, so that differences are not NaN
TICKETS = tl.constexpr(0)
DONE = tl.constexpr(1)
# One counter for each row: its finished chunks, or CHUNKS + 1 once the statistics of the row are stored.
ARRIVED = tl.constexpr(2)


@triton.jit
def statistics_of_chunk(
    logits, logits_row, logits_class, weights, weights_stride, class_weights, r, counts, label, first, tiles,
    temperature, CLASSES: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr, UNIT: tl.constexpr,
    THREADS: tl.constexpr, RUN: tl.constexpr, WIDTH: tl.constexpr, POWER: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """Statistics [1, WIDTH] of row r [1] in classes first .. first + tiles * BLOCK, relative to their own maxima.

    Each thread keeps sums relative to its own maxima. Threads exchange them only at the end. The last of the
    statistics, [1, 1], is the sum of the class weights.
    """
    S: tl.constexpr = len(logits)
    k = LOG2_E / temperature
    m, early, s, s1, cross, even = (), (), (), (), (), ()
    for _ in tl.static_range(S + 1):
        m = m + (tl.full([1, THREADS], LOWEST, tl.float32),)
        early = early + (tl.full([1, THREADS], -float("inf"), tl.float32),)
        s = s + (tl.zeros([1, THREADS], tl.float32),)
        s1 = s1 + (tl.zeros([1, THREADS], tl.float32),)
        cross = cross + (tl.zeros([1, THREADS], tl.float32),)
        even = even + (tl.zeros([1, THREADS], tl.float32),)
    seen = tl.zeros([1, THREADS], tl.float32)
    for i in range(0, tiles):
        c = first + i * BLOCK + tl.arange(0, BLOCK)[None, :]
        mask = counts[:, None] & (c < CLASSES)
        z = ()
        for j in tl.static_range(S):
            at = places(r, c, of_student(logits_row, j), of_student(logits_class, j), VEC, UNIT)
            z = z + (tl.load(logits[j] + at, mask=mask, other=-float("inf")).to(tl.float32),)
        z = z + (mixture(z, weights, weights_stride, mask),)
        new_m, new_early, new_s, new_s1, new_cross, new_even, scale = (), (), (), (), (), (), ()
        for j in tl.static_range(S + 1):
            highest = tl.maximum(m[j], thread_max(z[j], THREADS, RUN))
            new_m = new_m + (highest,)
            scale = scale + (tl.exp2((m[j] - highest) * k),)
            if label is not None:
                # Tiles before the label's count as a whole; later tiles do not count.
                new_early = new_early + (tl.where(first + (i + 1) * BLOCK <= label, highest, early[j]),)
        if label is not None:
            if (first + i * BLOCK <= label) & (label < first + (i + 1) * BLOCK):
                before = tl.where(c < label, 0.0, -float("inf"))
                within = ()
                for j in tl.static_range(S + 1):
                    within = within + (tl.maximum(early[j], thread_max(z[j] + before, THREADS, RUN)),)
                new_early = within
            early = new_early
        mixed_d = by_thread(z[S], THREADS, RUN) - new_m[S][:, None, :, None]
        mixed_e = tl.exp2(mixed_d * k)
        given = mixed_e > 0
        if SMOOTH:
            w = tl.where(mask, 1.0, 0.0)
            if len(class_weights) > 0:
                w = tl.where(mask, load_class_weights(class_weights, c, CLASSES), 0.0)
        for j in tl.static_range(S + 1):
            d = mixed_d
            e = mixed_e
            if j < S:
                d = by_thread(z[j], THREADS, RUN) - new_m[j][:, None, :, None]
                e = tl.exp2(d * k)
            new_s = new_s + (s[j] * scale[j] + tl.sum(tl.sum(e, 3), 1),)
            moved = s1[j] * exp_at_1(scale[j], m[j] - new_m[j], POWER)
            new_s1 = new_s1 + (moved + tl.sum(tl.sum(exp_at_1(e, d, POWER), 3), 1),)
            shift = (m[S] - new_m[S]) - (m[j] - new_m[j])
            moved = tl.where(scale[S] > 0, scale[S] * (cross[j] + s[S] * shift), 0.0)
            gap = mixed_e * tl.where(given, mixed_d - d, 0.0)
            new_cross = new_cross + (moved + tl.sum(tl.sum(gap, 3), 1),)
            if SMOOTH:
                moved = even[j] + seen * (m[j] - new_m[j])
                new_even = new_even + (moved + tl.sum(tl.sum(weighted(by_thread(w, THREADS, RUN), d), 3), 1),)
        m, s, s1, cross = new_m, new_s, new_s1, new_cross
        if SMOOTH:
            even = new_even
            seen += thread_sum(w, THREADS, RUN)
    infinite: tl.constexpr = -float("inf")
    threads = (stack(m, LOWEST, WIDTH), stack(s, 0.0, WIDTH), stack(s1, 0.0, WIDTH), stack(cross, 0.0, WIDTH),
               stack(early, infinite, WIDTH), stack(even, 0.0, WIDTH), seen[:, :, None])  # fmt: skip
    return merge(threads, temperature, S, WIDTH, POWER, SMOOTH)


@triton.jit
def merge(tables, temperature, STUDENTS: tl.constexpr, WIDTH: tl.constexpr, POWER: tl.constexpr, SMOOTH: tl.constexpr):
    """Merge statistics [1, N, WIDTH] of N parts of a row, relative to their own maxima, into [1, WIDTH]."""
    m, s, s1, cross, early, even, seen = tables
    column = tl.arange(0, WIDTH)[None, None, :]
    whole, early = max_together(m, early)
    moved = m - whole[:, None, :]
    scale = tl.exp2(moved * (LOG2_E / temperature))
    mixed_s = tl.sum(tl.where(column == STUDENTS, s, 0.0), 2)[:, :, None]
    mixed_scale = tl.sum(tl.where(column == STUDENTS, scale, 0.0), 2)[:, :, None]
    mixed_moved = tl.sum(tl.where(column == STUDENTS, moved, 0.0), 2)[:, :, None]
    cross = tl.where(mixed_scale > 0, mixed_scale * (cross + mixed_s * (mixed_moved - moved)), 0.0)  # not 0 * inf
    s1 = s1 * exp_at_1(scale, moved, POWER)
    if SMOOTH:
        even = tl.where(seen == 0, 0.0, even + seen * moved)  # the maximum of a part without classes is LOWEST
        seen = tl.sum(seen, 1)
    s, s1, cross, even = sum_together(s * scale, s1, cross, even)
    return whole, s, s1, cross, early, even, seen


@triton.jit
def load_chunks(chunk_statistics, r, FIELD: tl.constexpr, other, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
    """Load a field [1, N, WIDTH] of all chunks of row r [1], stored by other programs; N is a power of two."""
    PADDED: tl.constexpr = triton.next_power_of_2(CHUNKS)
    chunk = tl.arange(0, PADDED)[None, :, None]
    at = chunk_statistics + ((r * CHUNKS)[:, None, None] + chunk) * (QUADS * 4 * WIDTH)
    at += place(FIELD, tl.arange(0, WIDTH), WIDTH)[None, None, :]
    return tl.load(at, mask=chunk < CHUNKS, other=other, cache_modifier=".cg")


@triton.jit
def some_missing(arrived, inside, CHUNKS: tl.constexpr):
    """Whether the statistics of some rows are not stored yet; `arrived` points at the counters [R] of the rows.

    If none is missing, the threads that read the counters see all statistics, and after a barrier every thread does.
    """
    finished = tl.atomic_add(arrived, 0, mask=inside, sem="acquire")
    return tl.min(tl.where(inside, finished, CHUNKS + 1), 0) <= CHUNKS


@triton.jit
def store_row(
    row_statistics, r, inside, tables, label, valid, logits, logits_row, logits_class, weights, weights_stride,
    class_weights, label_smoothing, CLASSES: tl.constexpr, VEC: tl.constexpr, WIDTH: tl.constexpr,
    SMOOTH: tl.constexpr,
):  # fmt: skip
    """Store the statistics of row r [1], given the merged tables of its chunks."""
    most, s, s1, cross, early, even, _ = tables
    store_quads(row_statistics, r, inside, 0, most, s, s1, cross, WIDTH)
    if label is not None:
        z_y = logits_at(logits, logits_row, logits_class, weights, weights_stride, r, label, valid, VEC, WIDTH)
        at_label = z_y - most
        right = ((z_y == most) & (early < most)).to(tl.float32)
        labels_sum = right
        if len(class_weights) > 0:
            label_weight = weight_of_labels(class_weights, label, valid)
            at_label = tl.where(valid[:, None], weighted(label_weight[:, None], at_label), float("nan"))
            labels_sum = total_of_labels(label_weight, class_weights, label_smoothing, SMOOTH)[:, None] + 0.0 * right
        if SMOOTH:
            at_label = smoothed(at_label, even, label_smoothing, CLASSES)
        store_quads(row_statistics, r, inside, 1, at_label, right, right, labels_sum, WIDTH)


@triton.jit(do_not_specialize=["rows", "ignore_index", "lag"])
def streamed(
    logits, logits_row, logits_class,  # S pointers [rows, CLASSES], row strides, class strides; see row_statistics
    grads, grads_row, grads_class,  # the same for the gradients, or () if none are computed
    target, target_stride,  # integers [rows], or None
    class_weights,  # (w [CLASSES], mean of w), or () without
    weights, weights_stride,  # [S], or None for 1/S each
    grad_scale, grad_scale_row,  # one element, or None for 1, and None; or [rows] and its stride
    device_scalars,  # fp32 [3] in place of temperature, ce_weight, kd_weight; or None
    num_items,  # one element that replaces the divisors, or None
    number,  # DIVISORS pointers, the divisors; () if each program counts them
    loss, ce, kd, ensemble_ce, correct,  # fp32 [], [S], [S], [], or PER_ROW [rows], [S, rows] ...; int64 [S + 1]
    counted,  # fp32 [DIVISORS], for a backward pass; or None
    row_statistics,  # fp32 [rows, QUADS, WIDTH, 4]
    chunk_statistics,  # fp32 [rows, CHUNKS, QUADS, WIDTH, 4]
    partials,  # fp32 [programs, 4 WIDTH]
    counters,  # int32 [2 + rows], 0 before and after
    delays,  # for stress tests, see common/delay.py; or None
    rows, lag, temperature, ce_weight, kd_weight, label_smoothing, ignore_index,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr, VEC: tl.constexpr, UNIT: tl.constexpr,
    THREADS: tl.constexpr, RUN: tl.constexpr, WIDTH: tl.constexpr, LABELS: tl.constexpr, SUM_ROWS: tl.constexpr,
    ENTRIES: tl.constexpr, POWER: tl.constexpr, SMOOTH: tl.constexpr, MEAN: tl.constexpr, DETACH: tl.constexpr,
    PER_ROW: tl.constexpr, DIVISORS: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = len(logits)
    WEIGHTED: tl.constexpr = len(class_weights) > 0
    rows_losses = (loss, ce, kd, ensemble_ce) if PER_ROW else ()
    GRADS: tl.constexpr = len(grads) > 0
    CHUNKS: tl.constexpr = (CLASSES + TILES * BLOCK - 1) // (TILES * BLOCK)
    temperature, ce_weight, kd_weight = in_force(device_scalars, temperature, ce_weight, kd_weight)
    scales = 1.0, 1.0
    if GRADS:
        scales = scales_of_gradients(
            grad_scale, grad_scale_row, num_items, number, target, target_stride, class_weights, rows, ignore_index,
            CLASSES, LABELS, MEAN, DIVISORS,
        )  # fmt: skip
    # Tickets alternate between the statistics of a row's chunks and the gradients of the row LAG rows before it.
    turns = rows
    if GRADS:
        turns = rows + lag
    PASSES: tl.constexpr = 2 if GRADS else 1
    ticket = tl.atomic_add(counters + TICKETS, 1, sem="relaxed")
    while ticket < turns * (PASSES * CHUNKS):
        if delays is not None:
            delay(delays, ticket)
        row = ticket // (PASSES * CHUNKS)
        within = ticket % (PASSES * CHUNKS)
        chunk = within % CHUNKS
        second = within >= CHUNKS
        if second:
            row -= lag
        if (row >= 0) & (row < rows):
            r = row.to(tl.int64) + tl.zeros([1], tl.int64)
            inside = r < rows
            counts = inside
            valid = inside
            label = None
            scalar_label = None
            if target is not None:
                label = tl.load(target + r * target_stride).to(tl.int64)
                scalar_label = tl.load(target + row.to(tl.int64) * target_stride).to(tl.int64)
                counts = label != ignore_index
                valid = counts & (label >= 0) & (label < CLASSES)
            arrived = counters + ARRIVED + row
            if GRADS:
                if second:
                    while tl.atomic_add(arrived, 0, sem="acquire") <= CHUNKS:
                        pass
                    tl.debug_barrier()
                    write_gradients(
                        logits, logits_row, logits_class, grads, grads_row, grads_class, weights, weights_stride,
                        row_statistics, (), r, inside, counts, label, class_weights, chunk * (TILES * BLOCK), TILES,
                        scales_of_rows(scales, grad_scale, grad_scale_row, r, counts), temperature, ce_weight,
                        kd_weight, label_smoothing, CLASSES, BLOCK, VEC, UNIT, WIDTH, POWER, SMOOTH, DETACH,
                    )  # fmt: skip
            if not second:
                parts = statistics_of_chunk(
                    logits, logits_row, logits_class, weights, weights_stride, class_weights, r, counts, scalar_label,
                    chunk * (TILES * BLOCK), TILES, temperature, CLASSES, BLOCK, VEC, UNIT, THREADS, RUN, WIDTH, POWER,
                    SMOOTH,
                )  # fmt: skip
                at = r * CHUNKS + chunk
                store_quads(chunk_statistics, at, inside, 0, parts[0], parts[1], parts[2], parts[3], WIDTH)
                seen = parts[4]
                if SMOOTH:
                    seen = tl.broadcast_to(parts[6], [1, WIDTH])
                store_quads(chunk_statistics, at, inside, 1, parts[4], parts[5], seen, parts[5], WIDTH)
                if arrives_last(arrived, CHUNKS):
                    chunks = (
                        load_chunks(chunk_statistics, r, MAXIMUM, LOWEST, CHUNKS, WIDTH),
                        load_chunks(chunk_statistics, r, SUM, 0.0, CHUNKS, WIDTH),
                        load_chunks(chunk_statistics, r, SUM_1, 0.0, CHUNKS, WIDTH),
                        load_chunks(chunk_statistics, r, CROSS, 0.0, CHUNKS, WIDTH),
                        load_chunks(chunk_statistics, r, EARLY, -float("inf"), CHUNKS, WIDTH),
                        load_chunks(chunk_statistics, r, EVEN, 0.0, CHUNKS, WIDTH),
                        load_chunks(chunk_statistics, r, SEEN, 0.0, CHUNKS, WIDTH),
                    )
                    store_row(
                        row_statistics, r, inside, merge(chunks, temperature, S, WIDTH, POWER, SMOOTH), label, valid,
                        logits, logits_row, logits_class, weights, weights_stride, class_weights, label_smoothing,
                        CLASSES, VEC, WIDTH, SMOOTH,
                    )  # fmt: skip
                    if delays is not None:
                        delay(delays, row)
                    tl.debug_barrier()
                    tl.atomic_add(arrived, 1, sem="release")
        ticket = tl.atomic_add(counters + TICKETS, 1, sem="relaxed")

    # Sum the losses of a share of the rows. All tickets are taken: each row is finished or held by a running program.
    sums = no_sums(SUM_ROWS, WIDTH, 2 + DIVISORS)
    mine = tl.cdiv(rows - tl.program_id(0), tl.num_programs(0))
    for first in range(0, mine, SUM_ROWS):
        i = first + tl.arange(0, SUM_ROWS)
        r = tl.program_id(0) + i * tl.num_programs(0)
        inside = i < mine
        while some_missing(counters + ARRIVED + r, inside, CHUNKS):
            pass
        tl.debug_barrier()
        sums = add_rows(
            sums, rows_losses, row_statistics, r, inside, target, target_stride, class_weights, rows, temperature,
            ce_weight, kd_weight, None, ignore_index, CLASSES, S, WIDTH, target is not None, WEIGHTED, False,
        )  # fmt: skip
    store_sums(partials, sums, WIDTH)
    if last_to_arrive(counters + DONE, tl.num_programs(0)):
        write_statistics(
            partials, num_items, loss, ce, kd, ensemble_ce, correct, counted, temperature, ce_weight, kd_weight, None,
            S, WIDTH, ENTRIES, MEAN, PER_ROW, DIVISORS,
        )  # fmt: skip
        for start in range(0, rows + ARRIVED, LABELS):
            counter = start + tl.arange(0, LABELS)
            tl.store(counters + counter, tl.zeros([LABELS], tl.int32), mask=counter < rows + ARRIVED)
