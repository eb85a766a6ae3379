"""The loss for rows that fit the registers of one program: each logit is read once, each gradient written once.

A program processes several tiles [ROWS, BLOCK] of all students in a loop, since a launch has no more programs than the
GPU can hold at a time. It then computes the losses of its rows from `row_statistics`, many rows at a time. Without
these, or if it has ONE_TILE, it computes them from registers. The last program to finish adds the sums of all programs.

The loads of the logits come first and do not depend on the labels, so that both are in flight at the same time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.arrival import last_to_arrive
from ..common.delay import delay
from .divergences import (
    FORWARD,
    REVERSE,
    js_divergences,
    reverse_divergences,
    target_terms,
)
from .gradients import scales_of_gradients, scales_of_rows, student_weight
from .labels import (
    first_largest,
    load_class_weights,
    load_labels,
    load_probabilities,
    of_every_class,
    smoothed,
    total_of_labels,
    weight_of_labels,
    weighted,
)
from .row_statistics import (
    LOG2_E,
    common_gradient,
    ensemble_gradient,
    exp_at_1,
    in_force,
    logits_at,
    mixture,
    of_student,
    places,
    stack,
    store_quads,
    student_gradient,
    sum_together,
    thread_max,
    thread_sum,
    unstack,
)
from .standardised import scaled, standardised_gradients, standards
from .targets import (
    ENSEMBLE,
    PROBABILITIES,
    cross_sum,
    divergences,
    extra_teachers,
    label_gradient,
    store_weight_gradients,
    teacher_of,
)
from .totals import (
    add_losses,
    add_rows,
    cross_entropy_of,
    divergence_of,
    no_sums,
    store_losses,
    store_sums,
    write_statistics,
)


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def resident(
    logits, logits_row, logits_class,  # S pointers [rows, CLASSES], row strides, class strides; see row_statistics
    grads, grads_row, grads_class,  # the same for the gradients, or () if none are computed
    target, target_stride,  # integers [rows], or None
    # One pointer [rows, CLASSES], its row strides and class stride, or () without. Within one tuple, a row stride of 1
    # would be lost in a loop with Triton 3.6.0.
    probabilities, probabilities_row, probabilities_class,
    class_weights,  # (w [CLASSES], mean of w), or () without
    weights, weights_stride,  # [S], or None for 1/S each
    weights_row,  # row stride of a gate [rows, S], or None
    teachers, teachers_row, teachers_class,  # K pointers [rows, CLASSES], row strides, class strides; or ()
    mixing,  # fp32 [S, S + K], or None
    grad_scale, grad_scale_row,  # one element, or None for 1, and None; or [rows] and its stride
    device_scalars,  # fp32 [3] in place of temperature, ce_weight, kd_weight, or [4] and of ensemble_ce_weight; or None
    ensemble_ce_weight,  # None if it is not part of the loss
    weights_grad,  # fp32 [rows, S] dL/dw of each row, or None
    num_items,  # one element that replaces the divisors, or None
    number,  # DIVISORS pointers, the divisors; () if each program counts them
    loss, ce, kd, ensemble_ce, correct,  # fp32 [], [S], [S], [], or PER_ROW [rows], [S, rows] ...; int64 [S + 1]
    counted,  # fp32 [DIVISORS], for a backward pass; or None
    row_statistics,  # fp32 [rows, QUADS, WIDTH, 4], or None
    partials,  # fp32 [programs, 4 WIDTH]
    done,  # int32 [1], 0 before and after
    delays,  # for stress tests, see common/delay.py; or None
    rows, temperature, ce_weight, kd_weight, label_smoothing, ignore_index, beta,
    CLASSES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr, UNIT: tl.constexpr,
    THREADS: tl.constexpr, RUN: tl.constexpr, WIDTH: tl.constexpr, LABELS: tl.constexpr, SUM_ROWS: tl.constexpr,
    ENTRIES: tl.constexpr, POWER: tl.constexpr, SMOOTH: tl.constexpr, MEAN: tl.constexpr, DETACH: tl.constexpr,
    PER_ROW: tl.constexpr, WEIGHTED: tl.constexpr, DIVISORS: tl.constexpr, TARGETS: tl.constexpr,
    DIVERGENCE: tl.constexpr, STANDARDISE: tl.constexpr, VEC_BESIDE: tl.constexpr, UNIT_BESIDE: tl.constexpr,
    IN_PLACE: tl.constexpr, ONE_TILE: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = len(logits)
    GRADS: tl.constexpr = len(grads) > 0
    LABELLED: tl.constexpr = target is not None or len(probabilities) > 0
    # The divergence is not that of the ensemble, which is computed from the statistics of a row.
    READY: tl.constexpr = TARGETS != ENSEMBLE or DIVERGENCE != FORWARD or STANDARDISE
    rows_losses = (loss, ce, kd, ensemble_ce) if PER_ROW else ()
    FROM_REGISTERS: tl.constexpr = row_statistics is None or ONE_TILE
    sums = ()
    if FROM_REGISTERS:
        sums = no_sums(ROWS, WIDTH, 2 + DIVISORS)
    if ensemble_ce_weight is not None and device_scalars is not None:
        ensemble_ce_weight = tl.load(device_scalars + 3)
    # Device scalars are read again wherever they are needed, since keeping them would spill registers.
    k = LOG2_E / in_force(device_scalars, temperature, ce_weight, kd_weight)[0]
    c = tl.arange(0, BLOCK)[None, :]
    tiles = tl.cdiv(rows, ROWS)
    end = tiles
    scales = 1.0, 1.0
    if ONE_TILE:
        end = tl.program_id(0) + 1  # the compiler then removes the loop
    elif GRADS:
        scales = scales_of_gradients(
            grad_scale, grad_scale_row, num_items, number, target, target_stride, class_weights, rows, ignore_index,
            CLASSES, LABELS, MEAN, DIVISORS,
        )  # fmt: skip

    for tile in range(tl.program_id(0), end, tl.num_programs(0)):
        if delays is not None:
            delay(delays, tile)
        r = tile * ROWS + tl.arange(0, ROWS)
        inside = r < rows
        r = r.to(tl.int64)
        loaded = ()
        for j in tl.static_range(S):
            at = places(r, c, of_student(logits_row, j), of_student(logits_class, j), VEC, UNIT)
            loaded = loaded + (tl.load(logits[j] + at, mask=inside[:, None] & (c < CLASSES), other=-float("inf")),)
        counts = inside
        label = None
        if target is not None:
            label = load_labels(target, r * target_stride, inside, ignore_index)
            counts = inside & (label != ignore_index)
            valid = counts & (label >= 0) & (label < CLASSES)
        of_call = scales
        if ONE_TILE and GRADS:
            of_call = scales_of_gradients(
                grad_scale, grad_scale_row, num_items, number, target, target_stride, class_weights, rows,
                ignore_index, CLASSES, LABELS, MEAN, DIVISORS,
            )  # fmt: skip
        mask = counts[:, None] & (c < CLASSES)
        u = None
        if len(probabilities) > 0:
            u = load_probabilities(
                probabilities, probabilities_row, probabilities_class, r, c, mask, VEC_BESIDE, UNIT_BESIDE
            )
            label = first_largest(u, c, mask, CLASSES)
            valid = counts & (label < CLASSES)

        # The logits of an ignored row become -inf, so that all of its exponentials are 0.
        z = ()
        for j in tl.static_range(S):
            z = z + (tl.where(counts[:, None], loaded[j].to(tl.float32), -float("inf")),)
        extra = ()
        if TARGETS != ENSEMBLE:
            extra = extra_teachers(
                z, teachers, teachers_row, teachers_class, mixing, r, c, mask, VEC_BESIDE, UNIT_BESIDE, TARGETS
            )
        z = z + (mixture(z, weights, weights_stride, mask, weights_row, r, counts),) + extra

        most = ()
        for j in tl.static_range(len(z)):
            most = most + (thread_max(z[j], THREADS, RUN),)
        most = tl.max(stack(most, -float("inf"), WIDTH), 1)
        most = tl.where(counts[:, None], most, 0.0)
        m = unstack(most, WIDTH)
        if LABELLED:
            # Bit j is set if a class before the label equals student j's maximum.
            bits: tl.constexpr = tl.int32 if S < 31 else tl.int64
            before = tl.where(c < label[:, None], 0.0, -float("inf"))
            early = tl.zeros([ROWS, THREADS], bits)
            for j in tl.static_range(S + 1):
                first = thread_max(z[j] + before, THREADS, RUN)
                early |= tl.where(first == m[j][:, None], tl.full([], 1, bits) << j, 0)
            early = tl.reduce_or(early, 1)
        # The weights of the classes, and those of the labels: their sum Y, and of an index its own.
        w = None
        label_weight = None
        labels_sum = None
        if len(class_weights) > 0:
            w = load_class_weights(class_weights, c, CLASSES)
        if len(probabilities) > 0:
            if w is not None:
                u = u * w
            labels_sum = total_of_labels(tl.sum(u, 1), class_weights, label_smoothing, SMOOTH)
        elif WEIGHTED:
            label_weight = weight_of_labels(class_weights, label, valid)
            labels_sum = total_of_labels(label_weight, class_weights, label_smoothing, SMOOTH)

        # One exponential for each element, kept in registers until the gradient is computed from it.
        d, e, s, s1, cross, even = (), (), (), (), (), ()
        for j in tl.static_range(len(z)):
            d = d + (z[j] - m[j][:, None],)
        x = d  # T times the exponents at T
        if STANDARDISE:
            standard = standards(d, THREADS, RUN, WIDTH)
            x = scaled(d, standard[1], WIDTH)
        for j in tl.static_range(len(z)):
            e = e + (tl.exp2(x[j] * k),)
        for j in tl.static_range(len(z)):
            s = s + (thread_sum(e[j], THREADS, RUN),)
            s1 = s1 + (thread_sum(exp_at_1(e[j], d[j], POWER), THREADS, RUN),)
            if TARGETS == PROBABILITIES or j > S:
                cross = cross + (0.0 * s[j],)
            elif DIVERGENCE == REVERSE:
                teacher_x = x[teacher_of(j, S, TARGETS)]
                cross = cross + (cross_sum(teacher_x, x[j], e[j], THREADS, RUN),)
            else:
                teacher_x, teacher_e = x[teacher_of(j, S, TARGETS)], e[teacher_of(j, S, TARGETS)]
                cross = cross + (cross_sum(x[j], teacher_x, teacher_e, THREADS, RUN),)
            if SMOOTH:
                given = tl.where(mask, d[j], 0.0) if w is None else tl.where(mask, weighted(w, d[j]), 0.0)
                even = even + (thread_sum(given, THREADS, RUN),)
            else:
                even = even + (0.0 * s[j],)
        s, s1, cross, even = sum_together(
            stack(s, 0.0, WIDTH), stack(s1, 0.0, WIDTH), stack(cross, 0.0, WIDTH), stack(even, 0.0, WIDTH)
        )

        if row_statistics is not None:
            store_quads(row_statistics, r, inside, 0, most, s, s1, cross, WIDTH)
        kl = s
        of_q = s
        if READY:
            temperature = in_force(device_scalars, temperature, ce_weight, kd_weight)[0]
            if DIVERGENCE == FORWARD:
                kl = divergences(x, e, s, cross, mixing, temperature, S, THREADS, RUN, WIDTH, TARGETS)
            elif DIVERGENCE == REVERSE:
                kl = reverse_divergences(s, cross, temperature, S, WIDTH, TARGETS)
            else:
                kl, of_q = js_divergences(x, e, s, beta, temperature, S, THREADS, RUN, WIDTH, TARGETS)
            if not LABELLED and row_statistics is not None:
                store_quads(row_statistics, r, inside, 1, kl, kl, kl, kl, WIDTH)
        at_label = None
        right = None
        if LABELLED:
            z_y = logits_at(
                logits, logits_row, logits_class, weights, weights_stride, r, label, valid, VEC, WIDTH, weights_row
            )
            at_label = z_y - most
            if u is not None:
                of_u = ()
                for j in tl.static_range(S + 1):
                    of_u = of_u + (thread_sum(weighted(u, d[j]), THREADS, RUN),)
                at_label = tl.where(valid[:, None], tl.sum(stack(of_u, 0.0, WIDTH), 1), float("nan"))
            elif WEIGHTED:
                at_label = tl.where(valid[:, None], weighted(label_weight[:, None], at_label), float("nan"))
            if SMOOTH:
                at_label = smoothed(at_label, even, label_smoothing, CLASSES)
            right = ((z_y == most) & (early[:, None] >> tl.arange(0, WIDTH)[None, :] & 1 == 0)).to(tl.float32)
            if row_statistics is not None:
                labels = right if labels_sum is None else labels_sum[:, None] + 0.0 * right
                store_quads(row_statistics, r, inside, 1, at_label, right, kl if READY else right, labels, WIDTH)
        if FROM_REGISTERS:
            temperature, ce_weight, kd_weight = in_force(device_scalars, temperature, ce_weight, kd_weight)
            of_kl = kl if READY else divergence_of(s, cross, temperature, S, WIDTH)
            of_ce = None
            if LABELLED:
                of_ce = cross_entropy_of(s1, at_label, None if labels_sum is None else labels_sum[:, None])
            if PER_ROW:
                store_losses(
                    rows_losses, r, inside, counts, of_ce, of_kl, temperature, ce_weight, kd_weight,
                    ensemble_ce_weight, rows, S, WIDTH,
                )  # fmt: skip
            sums = add_losses(sums, counts, of_ce, of_kl, right, label_weight, S, WIDTH)

        if GRADS:
            if IN_PLACE:
                tl.debug_barrier()  # every thread has read the logits of the labels, which gradients overwrite
            temperature, ce_weight, kd_weight = in_force(device_scalars, temperature, ce_weight, kd_weight)
            scale, scale_ce = scales_of_rows(of_call, grad_scale, grad_scale_row, r, counts)
            s = unstack(s, WIDTH)
            s1 = unstack(s1, WIDTH)
            per_t = tl.where(counts, scale * kd_weight * temperature / s[S], 0.0)
            per_label = tl.where(counts, scale_ce * ce_weight, 0.0)
            to_label = per_label * (1.0 - label_smoothing)
            if label_weight is not None:
                to_label *= label_weight
            per_class = None
            if SMOOTH:
                per_class = of_every_class(per_label, w, label_smoothing, CLASSES)
            of_target = 0.0 * per_t if READY else per_t
            common = common_gradient(e[S], of_target, c, label, u, to_label, per_class)
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
                per_own = tl.where(counts, scale_ce * ensemble_ce_weight, 0.0)
                learning = label_gradient(
                    e[S], d[S], s1[S], per_own, c, label, u, w, label_weight, labels_sum, label_smoothing, CLASSES,
                    POWER,
                )  # fmt: skip
                learning = tl.where(mask, learning, 0.0)
                through = learning if DETACH else through + learning
            if weights_grad is not None:
                store_weight_gradients(weights_grad, z, through, r, inside, mask, S, THREADS, RUN, WIDTH)
            per_kd = tl.where(counts, scale * kd_weight * temperature, 0.0)
            if STANDARDISE:
                of_kd = standardised_gradients(
                    d, x, e, s, unstack(cross, WIDTH), unstack(of_q, WIDTH), standard, mixing, per_kd, beta,
                    temperature, S, THREADS, RUN, WIDTH, TARGETS, DIVERGENCE,
                )  # fmt: skip
            for j in tl.static_range(S):
                at_t = tl.where(counts, scale * kd_weight * temperature / s[j], 0.0)
                own = scale_ce * ce_weight
                if labels_sum is not None:
                    own = own * labels_sum
                at_1 = tl.where(counts, own / s1[j], 0.0)
                less = common
                if STANDARDISE:
                    at_t *= 0.0
                    less -= of_kd[j]
                elif READY:
                    of_targets, share = target_terms(
                        x, e, s, unstack(cross, WIDTH), unstack(of_q, WIDTH), mixing, per_kd, beta, temperature, j, S,
                        TARGETS, DIVERGENCE,
                    )  # fmt: skip
                    at_t *= share
                    less += tl.where(mask, of_targets, 0.0)
                grad = student_gradient(e[j], d[j], at_t, at_1, less, POWER)
                if MOVED:
                    grad += student_weight(weights, weights_stride, j, S, weights_row, r, counts) * through
                at = places(r, c, of_student(grads_row, j), of_student(grads_class, j), VEC, UNIT)
                tl.store(grads[j] + at, grad.to(grads[j].dtype.element_ty), mask=inside[:, None] & (c < CLASSES))

    temperature, ce_weight, kd_weight = in_force(device_scalars, temperature, ce_weight, kd_weight)
    if not FROM_REGISTERS:
        # Sum the losses of this program's rows, many rows at a time.
        tl.debug_barrier()
        sums = no_sums(SUM_ROWS, WIDTH, 2 + DIVISORS)
        mine = tl.cdiv(tiles - tl.program_id(0), tl.num_programs(0)) * ROWS
        for first in range(0, mine, SUM_ROWS):
            i = first + tl.arange(0, SUM_ROWS)
            r = (tl.program_id(0) + (i // ROWS) * tl.num_programs(0)) * ROWS + i % ROWS
            sums = add_rows(
                sums, rows_losses, row_statistics, r, (i < mine) & (r < rows), target, target_stride, class_weights,
                rows, temperature, ce_weight, kd_weight, ensemble_ce_weight, ignore_index, CLASSES, S, WIDTH, LABELLED,
                WEIGHTED, READY,
            )  # fmt: skip
    store_sums(partials, sums, WIDTH)
    if last_to_arrive(done, tl.num_programs(0)):
        write_statistics(
            partials, num_items, loss, ce, kd, ensemble_ce, correct, counted, temperature, ce_weight, kd_weight,
            ensemble_ce_weight, S, WIDTH, ENTRIES, MEAN, PER_ROW, DIVISORS,
        )  # fmt: skip
