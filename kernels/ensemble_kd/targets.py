"""Other targets than the ensemble, and what moves the ensemble itself, where a row fits the registers.

Members of a row are the students, the ensemble, then the other teachers: the external one, or each student's mixture of
logits. Where probabilities are mixed the students are the teachers, and kd_j = T^2 sum_i W_ji KL_ij.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .row_statistics import exp_at_1, places, stack, thread_sum

# TARGETS of a launch.
ENSEMBLE = tl.constexpr(0)
TEACHER = tl.constexpr(1)
LOGITS = tl.constexpr(2)
PROBABILITIES = tl.constexpr(3)


@triton.jit
def other_teachers(z, teacher, teacher_row, teacher_class, mixing, r, c, mask, TARGETS: tl.constexpr):
    """Logits [R, C] of the members beside the students' tuple z and the ensemble; -inf where masked."""
    external = ()
    if teacher is not None:
        at = places(r, c, teacher_row, teacher_class, 1, False)
        external = (tl.load(teacher + at, mask=mask, other=-float("inf")).to(tl.float32),)
    teachers = external
    if TARGETS == LOGITS:
        sources = z + external
        teachers = ()
        for j in tl.static_range(len(z)):
            target = tl.zeros_like(z[0])
            for i in tl.static_range(len(sources)):
                w = tl.load(mixing + j * len(sources) + i)
                target += w * tl.where(w == 0, 0.0, sources[i])
            teachers = teachers + (tl.where(mask, target, -float("inf")),)
    return teachers


@triton.jit
def cross_sum(d, teacher_d, teacher_e, THREADS: tl.constexpr, RUN: tl.constexpr):
    """[R, THREADS] sums of eT (dT - d) of a teacher and a student."""
    return thread_sum(teacher_e * tl.where(teacher_e > 0, teacher_d - d, 0.0), THREADS, RUN)


@triton.jit
def divergence(cross, teacher_s, s, temperature):
    """KL(teacher || student) at T; rounding may not make it negative."""
    kl = cross / (teacher_s * temperature) + tl.log(s / teacher_s)
    return tl.maximum(kl, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.constexpr_function
def teacher_of(j, students, targets):
    """The member whose softmax is student j's target, and the ensemble's, which is its own where it is nobody else's.

    Of mixed probabilities, the member of their column j.
    """
    if targets != PROBABILITIES.value and j == students:
        return students
    if targets == ENSEMBLE.value:
        return students
    if targets == TEACHER.value:
        return students + 1
    if targets == LOGITS.value:
        return students + 1 + j
    return j if j < students else j + 1


@triton.jit
def divergences(
    d, e, s, cross, mixing, temperature,
    STUDENTS: tl.constexpr, THREADS: tl.constexpr, RUN: tl.constexpr, WIDTH: tl.constexpr, TARGETS: tl.constexpr,
):  # fmt: skip
    """KL [R, WIDTH] of each student from its target; d, e tuples of members, s, cross tables [R, WIDTH]."""
    column = tl.arange(0, WIDTH)[None, :]
    if TARGETS == PROBABILITIES:
        SOURCES: tl.constexpr = len(d) - 1
        kl = tl.zeros_like(s)
        for i in tl.static_range(SOURCES):
            teacher_d, teacher_e = d[teacher_of(i, STUDENTS, TARGETS)], e[teacher_of(i, STUDENTS, TARGETS)]
            sums = ()
            for j in tl.static_range(STUDENTS):
                sums = sums + (cross_sum(d[j], teacher_d, teacher_e, THREADS, RUN),)
            of_pairs = tl.sum(stack(sums, 0.0, WIDTH), 1)
            teacher_s = tl.sum(tl.where(column == teacher_of(i, STUDENTS, TARGETS), s, 0.0), 1)[:, None]
            w = tl.load(mixing + column * SOURCES + i, mask=column < STUDENTS, other=0.0)
            kl += tl.where(w == 0, 0.0, w * divergence(of_pairs, teacher_s, s, temperature))
    else:
        teacher_s = tl.zeros_like(s)
        for j in tl.static_range(STUDENTS):
            of_teacher = tl.sum(tl.where(column == teacher_of(j, STUDENTS, TARGETS), s, 0.0), 1)[:, None]
            teacher_s = tl.where(column == j, of_teacher, teacher_s)
        teacher_s = tl.where(column < STUDENTS, teacher_s, s)
        kl = divergence(cross, teacher_s, s, temperature)
    return kl


@triton.jit
def target_gradient(e, s, mixing, per_kd, j: tl.constexpr, STUDENTS: tl.constexpr, TARGETS: tl.constexpr):
    """What student j's gradient [R, C] is less for its target, and the weight of its own softmax."""
    own = 1.0
    if TARGETS == PROBABILITIES:
        SOURCES: tl.constexpr = len(e) - 1
        less = tl.zeros_like(e[0])
        own = 0.0
        for i in tl.static_range(SOURCES):
            w = tl.load(mixing + j * SOURCES + i)
            own += w
            per_t = w * per_kd / s[teacher_of(i, STUDENTS, TARGETS)]
            less += e[teacher_of(i, STUDENTS, TARGETS)] * per_t[:, None]
    else:
        per_t = per_kd / s[teacher_of(j, STUDENTS, TARGETS)]
        less = e[teacher_of(j, STUDENTS, TARGETS)] * per_t[:, None]
    return less, own


@triton.jit
def label_gradient(e, d, s1, per_label, c, label, label_smoothing, CLASSES: tl.constexpr, POWER: tl.constexpr):
    """per_label (softmax - y) [R, C] of the ensemble at T = 1, y smoothed."""
    grad = exp_at_1(e, d, POWER) * (per_label / s1)[:, None]
    grad -= (per_label * (label_smoothing / CLASSES))[:, None]
    return grad - tl.where(c == label[:, None], (per_label * (1.0 - label_smoothing))[:, None], 0.0)


@triton.jit
def store_weight_gradients(
    weights_grad, z, toward, r, inside, mask, STUDENTS: tl.constexpr, THREADS: tl.constexpr, RUN: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """dL/dw_j = sum_c dL/dzE z_j of rows r into [rows, STUDENTS]; a logit of -inf counts 0."""
    sums = ()
    for j in tl.static_range(STUDENTS):
        given = mask & (z[j] > -float("inf"))
        sums = sums + (thread_sum(tl.where(given, toward * z[j], 0.0), THREADS, RUN),)
    column = tl.arange(0, WIDTH)[None, :]
    at = weights_grad + r[:, None] * STUDENTS + column
    tl.store(at, tl.sum(stack(sums, 0.0, WIDTH), 1), mask=inside[:, None] & (column < STUDENTS))
