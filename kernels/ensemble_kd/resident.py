"""The loss for rows that fit the registers of one program: each logit is read once, each gradient written once.

A program processes several tiles [ROWS, BLOCK] of all students in a loop, since a launch has no more programs than the
GPU can hold at a time. It then sums the losses of its rows. The last program to finish adds the sums of all programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.arrival import last_to_arrive
from .gradients import student_weight, upstream_scale
from .row_statistics import (
    LOG2_E,
    add_rows,
    common_gradient,
    counted_rows,
    ensemble_gradient,
    exp_at_1,
    in_force,
    logits_at,
    mixture,
    places,
    stack,
    store_quads,
    store_sums,
    student_gradient,
    sum_together,
    thread_max,
    thread_sum,
    unstack,
    write_statistics,
)
from .targets import (
    ENSEMBLE,
    PROBABILITIES,
    cross_sum,
    divergences,
    extra_teachers,
    label_gradient,
    store_weight_gradients,
    target_gradient,
    teacher_of,
)


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def resident(
    logits, logits_row, logits_class,  # S pointers [rows, CLASSES]; row strides / VEC, class strides
    grads, grads_row, grads_class,  # the same for the gradients, or () if none are computed
    target, target_stride,  # int64 [rows], or None
    weights, weights_stride,  # [S], or None for 1/S each
    weights_row,  # row stride of a gate [rows, S], or None
    teachers, teachers_row, teachers_class,  # K pointers [rows, CLASSES], row strides, class strides; or ()
    mixing,  # fp32 [S, S + K], or None
    grad_scale,  # one element, or None for 1
    device_scalars,  # fp32 [3] in place of temperature, ce_weight, kd_weight, or [4] and of ensemble_ce_weight; or None
    ensemble_ce_weight,  # None if it is not part of the loss
    weights_grad,  # fp32 [rows, S] dL/dw of each row, or None
    number,  # one element, the number of counted rows; None if each program counts them
    loss, ce, kd, ensemble_ce, correct,  # fp32 [], [S], [S], []; int64 [S + 1]
    counted,  # fp32 [], the number of counted rows, for a backward pass; or None
    row_statistics,  # fp32 [rows, QUADS, WIDTH, 4]
    partials,  # fp32 [programs, 4 WIDTH]
    done,  # int32 [1], 0 before and after
    rows, temperature, ce_weight, kd_weight, label_smoothing, ignore_index,
    CLASSES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr, UNIT: tl.constexpr,
    THREADS: tl.constexpr, RUN: tl.constexpr, WIDTH: tl.constexpr, LABELS: tl.constexpr, SUM_ROWS: tl.constexpr,
    ENTRIES: tl.constexpr, POWER: tl.constexpr, SMOOTH: tl.constexpr, MEAN: tl.constexpr, DETACH: tl.constexpr,
    TARGETS: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = len(logits)
    GRADS: tl.constexpr = len(grads) > 0
    if ensemble_ce_weight is not None and device_scalars is not None:
        ensemble_ce_weight = tl.load(device_scalars + 3)
    # Device scalars are read again wherever they are needed, since keeping them would spill registers.
    k = LOG2_E / in_force(device_scalars, temperature, ce_weight, kd_weight)[0]
    c = tl.arange(0, BLOCK)[None, :]
    tiles = tl.cdiv(rows, ROWS)
    scale = 1.0
    if GRADS:
        total = counted_rows(number, target, target_stride, rows, ignore_index, LABELS) if MEAN else 1.0
        scale = upstream_scale(grad_scale, total, MEAN)

    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        r = tile * ROWS + tl.arange(0, ROWS)
        inside = r < rows
        r = r.to(tl.int64)
        counts = inside
        label = None
        if target is not None:
            label = tl.load(target + r * target_stride, mask=inside, other=ignore_index)
            counts = inside & (label != ignore_index)
            valid = counts & (label >= 0) & (label < CLASSES)
        mask = counts[:, None] & (c < CLASSES)

        # The logits of an ignored row are read as -inf, so that all of its exponentials are 0.
        z = ()
        for j in tl.static_range(S):
            at = places(r, c, logits_row[j], logits_class[j], VEC, UNIT)
            z = z + (tl.load(logits[j] + at, mask=mask, other=-float("inf")).to(tl.float32),)
        extra = ()
        if TARGETS != ENSEMBLE:
            extra = extra_teachers(z, teachers, teachers_row, teachers_class, mixing, r, c, mask, TARGETS)
        z = z + (mixture(z, weights, weights_stride, mask, weights_row, r, counts),) + extra

        most = ()
        for j in tl.static_range(len(z)):
            most = most + (thread_max(z[j], THREADS, RUN),)
        most = tl.max(stack(most, -float("inf"), WIDTH), 1)
        most = tl.where(counts[:, None], most, 0.0)
        m = unstack(most, WIDTH)
        if target is not None:
            # Bit j is set if a class before the label equals student j's maximum.
            bits: tl.constexpr = tl.int32 if S < 31 else tl.int64
            before = tl.where(c < label[:, None], 0.0, -float("inf"))
            early = tl.zeros([ROWS, THREADS], bits)
            for j in tl.static_range(S + 1):
                first = thread_max(z[j] + before, THREADS, RUN)
                early |= tl.where(first == m[j][:, None], tl.full([], 1, bits) << j, 0)
            early = tl.reduce_or(early, 1)

        # One exponential for each element, kept in registers until the gradient is computed from it.
        d, e, s, s1, cross, even = (), (), (), (), (), ()
        for j in tl.static_range(len(z)):
            d = d + (z[j] - m[j][:, None],)
            e = e + (tl.exp2(d[j] * k),)
        for j in tl.static_range(len(z)):
            s = s + (thread_sum(e[j], THREADS, RUN),)
            s1 = s1 + (thread_sum(exp_at_1(e[j], d[j], POWER), THREADS, RUN),)
            if TARGETS == PROBABILITIES or j > S:
                cross = cross + (0.0 * s[j],)
            else:
                teacher_d, teacher_e = d[teacher_of(j, S, TARGETS)], e[teacher_of(j, S, TARGETS)]
                cross = cross + (cross_sum(d[j], teacher_d, teacher_e, THREADS, RUN),)
            even = even + ((thread_sum(tl.where(mask, d[j], 0.0), THREADS, RUN) if SMOOTH else 0.0 * s[j]),)
        s, s1, cross, even = sum_together(
            stack(s, 0.0, WIDTH), stack(s1, 0.0, WIDTH), stack(cross, 0.0, WIDTH), stack(even, 0.0, WIDTH)
        )

        store_quads(row_statistics, r, inside, 0, most, s, s1, cross, WIDTH)
        kl = s
        if TARGETS != ENSEMBLE:
            temperature = in_force(device_scalars, temperature, ce_weight, kd_weight)[0]
            kl = divergences(d, e, s, cross, mixing, temperature, S, THREADS, RUN, WIDTH, TARGETS)
            if target is None:
                store_quads(row_statistics, r, inside, 1, kl, kl, kl, kl, WIDTH)
        if target is not None:
            z_y = logits_at(
                logits, logits_row, logits_class, weights, weights_stride, r, label, valid, VEC, WIDTH, weights_row
            )
            at_label = z_y - most
            if SMOOTH:
                at_label = (1.0 - label_smoothing) * at_label + label_smoothing / CLASSES * even
            right = ((z_y == most) & (early[:, None] >> tl.arange(0, WIDTH)[None, :] & 1 == 0)).to(tl.float32)
            store_quads(
                row_statistics, r, inside, 1, at_label, right, kl if TARGETS != ENSEMBLE else right, right, WIDTH
            )

        if GRADS:
            temperature, ce_weight, kd_weight = in_force(device_scalars, temperature, ce_weight, kd_weight)
            s = unstack(s, WIDTH)
            s1 = unstack(s1, WIDTH)
            per_t = tl.where(counts, scale * kd_weight * temperature / s[S], 0.0)
            per_label = tl.where(counts, scale * ce_weight, 0.0)
            per_class = None
            if SMOOTH:
                per_class = per_label * (label_smoothing / CLASSES)
            of_target = per_t if TARGETS == ENSEMBLE else 0.0 * per_t
            common = common_gradient(e[S], of_target, c, label, per_label * (1.0 - label_smoothing), per_class)
            MOVED: tl.constexpr = not DETACH or ensemble_ce_weight is not None
            if not DETACH:
                cross = unstack(cross, WIDTH)
                gaps = S * d[S]
                mean_gap = cross[S]  # 0
                for j in tl.static_range(S):
                    gaps -= d[j]
                    mean_gap += cross[j]
                mean_gap = tl.where(counts, mean_gap / s[S], 0.0)
                through = ensemble_gradient(e[S], gaps, per_t, mean_gap, temperature)
            if ensemble_ce_weight is not None:
                per_own = tl.where(counts, scale * ensemble_ce_weight, 0.0)
                learning = label_gradient(e[S], d[S], s1[S], per_own, c, label, label_smoothing, CLASSES, POWER)
                learning = tl.where(mask, learning, 0.0)
                through = learning if DETACH else through + learning
            if weights_grad is not None:
                store_weight_gradients(weights_grad, z, through, r, inside, mask, S, THREADS, RUN, WIDTH)
            for j in tl.static_range(S):
                at_t = tl.where(counts, scale * kd_weight * temperature / s[j], 0.0)
                at_1 = tl.where(counts, scale * ce_weight / s1[j], 0.0)
                less = common
                if TARGETS != ENSEMBLE:
                    per_kd = tl.where(counts, scale * kd_weight * temperature, 0.0)
                    of_targets, own = target_gradient(e, s, mixing, per_kd, j, S, TARGETS)
                    less += tl.where(mask, of_targets, 0.0)
                    at_t *= own
                grad = student_gradient(e[j], d[j], at_t, at_1, less, POWER)
                if MOVED:
                    grad += student_weight(weights, weights_stride, j, S, weights_row, r, counts) * through
                at = places(r, c, grads_row[j], grads_class[j], VEC, UNIT)
                tl.store(grads[j] + at, grad.to(grads[j].dtype.element_ty), mask=inside[:, None] & (c < CLASSES))

    temperature, ce_weight, kd_weight = in_force(device_scalars, temperature, ce_weight, kd_weight)
    # Sum the losses of this program's rows, many rows at a time.
    tl.debug_barrier()
    sums = (tl.zeros([SUM_ROWS, WIDTH], tl.float32),) * 3
    mine = tl.cdiv(tiles - tl.program_id(0), tl.num_programs(0)) * ROWS
    for first in range(0, mine, SUM_ROWS):
        i = first + tl.arange(0, SUM_ROWS)
        r = (tl.program_id(0) + (i // ROWS) * tl.num_programs(0)) * ROWS + i % ROWS
        counts = (i < mine) & (r < rows)
        if target is not None:
            counts &= tl.load(target + r.to(tl.int64) * target_stride, mask=counts, other=ignore_index) != ignore_index
        sums = add_rows(
            sums, row_statistics, r.to(tl.int64), counts, target is not None, temperature, S, WIDTH, TARGETS != ENSEMBLE
        )
    store_sums(partials, sums, WIDTH)
    if last_to_arrive(done, tl.num_programs(0)):
        write_statistics(
            partials, loss, ce, kd, ensemble_ce, correct, counted, temperature, ce_weight, kd_weight, S, WIDTH,
            ENTRIES, MEAN, ensemble_ce_weight,
        )  # fmt: skip
