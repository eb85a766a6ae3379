"""Targets other than the ensemble, and the ensemble's own gradient, for the resident kernel.

The members of a row are the students, the ensemble, then the extra teachers: the external teachers, or for mixed logits
each student's mixture. For mixed probabilities the students are teachers too, and kd_j = T^2 sum_i W_ji KL_ij.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .labels import of_every_class
from .row_statistics import exp_at_1, load_tile, stack, thread_sum

# Values of TARGETS, the distribution that the students learn from.
ENSEMBLE = tl.constexpr(0)
TEACHER = tl.constexpr(1)
LOGITS = tl.constexpr(2)
PROBABILITIES = tl.constexpr(3)


@triton.jit
def add_source(target, mixing, at, z):
    """target + w z, with w the element `at` of `mixing`; a weight of 0 excludes z, even where it is -inf."""
    w = tl.load(mixing + at)
    return target + w * tl.where(w == 0, 0.0, z)


@triton.jit
def extra_teachers(
    z, teachers, teachers_row, teachers_class, mixing, r, c, mask, VEC: tl.constexpr, UNIT: tl.constexpr,
    TARGETS: tl.constexpr,
):  # fmt: skip
    """Logits [R, C] of the extra teachers; -inf where masked. `z` is the tuple of the students' logits."""
    extra = ()
    if TARGETS == LOGITS:
        SOURCES: tl.constexpr = len(z) + len(teachers)
        for j in tl.static_range(len(z)):
            target = tl.zeros_like(z[0])
            for i in tl.static_range(len(z)):
                target = add_source(target, mixing, j * SOURCES + i, z[i])
            extra = extra + (target,)
        # One external teacher at a time, so that registers hold only one.
        for i in tl.static_range(len(teachers)):
            source = load_tile(teachers[i], teachers_row[i], teachers_class[i], r, c, mask, -float("inf"), VEC, UNIT)
            targets = ()
            for j in tl.static_range(len(z)):
                targets = targets + (add_source(extra[j], mixing, j * SOURCES + len(z) + i, source),)
            extra = targets
        targets = ()
        for j in tl.static_range(len(z)):
            targets = targets + (tl.where(mask, extra[j], -float("inf")),)
        extra = targets
    else:
        for i in tl.static_range(len(teachers)):
            teacher = load_tile(teachers[i], teachers_row[i], teachers_class[i], r, c, mask, -float("inf"), VEC, UNIT)
            extra = extra + (teacher,)
    return extra


@triton.jit
def cross_sum(d, teacher_d, teacher_e, THREADS: tl.constexpr, RUN: tl.constexpr):
    """Sums [R, THREADS] of eT (dT - d) of a teacher and a student, one for each thread."""
    return thread_sum(teacher_e * tl.where(teacher_e > 0, teacher_d - d, 0.0), THREADS, RUN)


@triton.jit
def divergence(cross, teacher_s, s, temperature):
    """KL(teacher || student) at temperature T. A negative result of rounding becomes 0."""
    kl = cross / (teacher_s * temperature) + tl.log(s / teacher_s)
    return tl.maximum(kl, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.constexpr_function
def teacher_of(j, students, targets):
    """The member whose softmax is the target of member j, a student or the ensemble.

    The ensemble is its own target, so that its divergence is 0. For mixed probabilities, the member of column j of the
    mixing matrix.
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
def teacher_sums(s, STUDENTS: tl.constexpr, WIDTH: tl.constexpr, TARGETS: tl.constexpr):
    """The sum of each student's target [R, WIDTH], out of the sums s of all members."""
    column = tl.arange(0, WIDTH)[None, :]
    teacher_s = tl.zeros_like(s)
    for j in tl.static_range(STUDENTS):
        of_teacher = tl.sum(tl.where(column == teacher_of(j, STUDENTS, TARGETS), s, 0.0), 1)[:, None]
        teacher_s = tl.where(column == j, of_teacher, teacher_s)
    return tl.where(column < STUDENTS, teacher_s, s)


@triton.jit
def divergences(
    d, e, s, cross, mixing, temperature,
    STUDENTS: tl.constexpr, THREADS: tl.constexpr, RUN: tl.constexpr, WIDTH: tl.constexpr, TARGETS: tl.constexpr,
):  # fmt: skip
    """KL [R, WIDTH] of each student from its target. d and e are tuples of members, s and cross tables [R, WIDTH]."""
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
        teacher_s = teacher_sums(s, STUDENTS, WIDTH, TARGETS)
        kl = divergence(cross, teacher_s, s, temperature)
    return kl


@triton.jit
def target_gradient(e, s, mixing, per_kd, j: tl.constexpr, STUDENTS: tl.constexpr, TARGETS: tl.constexpr):
    """The target's term that student j's gradient [R, C] subtracts, and the weight of the student's own softmax."""
    own = 1.0
    if TARGETS == PROBABILITIES:
        SOURCES: tl.constexpr = len(e) - 1
        less = tl.zeros_like(e[0])
        own = 0.0
        for i in tl.static_range(SOURCES):
            w = tl.load(mixing + j * SOURCES + i)
            own += w
            per_t = w * per_kd / s[teacher_of(i, STUDENTS, TARGETS)]
            # A weight of 0 excludes a source, whose exponentials are NaN if its whole row is -inf.
            less += tl.where(w == 0, 0.0, e[teacher_of(i, STUDENTS, TARGETS)] * per_t[:, None])
    else:
        per_t = per_kd / s[teacher_of(j, STUDENTS, TARGETS)]
        less = e[teacher_of(j, STUDENTS, TARGETS)] * per_t[:, None]
    return less, own


@triton.jit
def label_gradient(
    e, d, s1, per_label, c, label, u, w, label_weight, labels_sum, label_smoothing, CLASSES: tl.constexpr,
    POWER: tl.constexpr,
):  # fmt: skip
    """per_label (Y softmax - y) [R, C] of the ensemble at T = 1, with smoothed and weighted labels y of sum Y."""
    to_label = per_label * (1.0 - label_smoothing)
    own = per_label / s1
    if label_weight is not None:
        to_label *= label_weight
    if labels_sum is not None:
        own *= labels_sum
    grad = exp_at_1(e, d, POWER) * own[:, None]
    grad -= of_every_class(per_label, w, label_smoothing, CLASSES)
    if u is not None:
        grad -= u * to_label[:, None]
    else:
        grad -= tl.where(c == label[:, None], to_label[:, None], 0.0)
    return grad


@triton.jit
def store_weight_gradients(
    weights_grad, z, toward, r, inside, mask, STUDENTS: tl.constexpr, THREADS: tl.constexpr, RUN: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Store dL/dw_j = sum_c dL/dzE z_j of rows r into [rows, STUDENTS]; terms with a logit of -inf are left out."""
    sums = ()
    for j in tl.static_range(STUDENTS):
        given = mask & (z[j] > -float("inf"))
        sums = sums + (thread_sum(tl.where(given, toward * z[j], 0.0), THREADS, RUN),)
    column = tl.arange(0, WIDTH)[None, :]
    at = weights_grad + r[:, None] * STUDENTS + column
    tl.store(at, tl.sum(stack(sums, 0.0, WIDTH), 1), mask=inside[:, None] & (column < STUDENTS))
