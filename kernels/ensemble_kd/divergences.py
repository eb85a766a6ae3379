"""Divergences other than KL(target || student), for the resident kernel.

With t the softmax of a student's target at temperature T, q that of the student and m = beta t + (1 - beta) q:

    reverse  T^2 KL(q || t)                                       d/dz  T q (log q - log t - KL(q || t))
    js       T^2 [beta KL(t || m) + (1 - beta) KL(q || m)]        d/dz  T (1 - beta) q (log (q / m) - KL(q || m))

The second is the generalised Jensen-Shannon divergence of Agarwal et al., ICLR 2024, arXiv 2306.13649, eq. 1. Each
student has one target, a member of its row (targets.py). d = z - m and e = exp(d / T) are tuples of members.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .row_statistics import stack, thread_sum, unstack
from .targets import divergence, target_gradient, teacher_of, teacher_sums

# Values of DIVERGENCE, those of the op.
FORWARD = tl.constexpr(0)
REVERSE = tl.constexpr(1)
JENSEN_SHANNON = tl.constexpr(2)


@triton.jit
def reverse_divergences(s, cross, temperature, STUDENTS: tl.constexpr, WIDTH: tl.constexpr, TARGETS: tl.constexpr):
    """KL(q || t) [R, WIDTH] of each student; cross is sum e (d - dT)."""
    return divergence(cross, s, teacher_sums(s, STUDENTS, WIDTH, TARGETS), temperature)


@triton.jit
def reverse_gradient(
    d, e, s, cross, per_kd, temperature, j: tl.constexpr, STUDENTS: tl.constexpr, TARGETS: tl.constexpr
):
    """What student j's gradient [R, C] subtracts; s and cross are tuples of members [R]."""
    gap = d[j] - d[teacher_of(j, STUDENTS, TARGETS)] - (cross[j] / s[j])[:, None]
    return tl.where(e[j] > 0, -(per_kd / (temperature * s[j]))[:, None] * e[j] * gap, 0.0)


@triton.jit
def log_ratios(d, teacher_d, s, teacher_s, beta, temperature):
    """log (t / m) and log (q / m), [R, C], from the larger of t and q, so that nothing overflows."""
    x = (teacher_d - d) / temperature + tl.log(s / teacher_s)[:, None]  # log (t / q)
    larger = x >= 0
    share = tl.where(larger, beta, 1.0 - beta)
    log_m = tl.log(share + (1.0 - share) * tl.exp(-tl.abs(x)))  # log (m / max(t, q))
    return tl.where(larger, 0.0, x) - log_m, tl.where(larger, -x, 0.0) - log_m


@triton.jit
def js_divergences(
    d, e, s, beta, temperature, STUDENTS: tl.constexpr, THREADS: tl.constexpr, RUN: tl.constexpr,
    WIDTH: tl.constexpr, TARGETS: tl.constexpr,
):  # fmt: skip
    """The divergence and its KL(q || m), [R, WIDTH], of each student; s is a table [R, WIDTH]."""
    sums = unstack(s, WIDTH)
    of_t = ()
    of_q = ()
    for j in tl.static_range(STUDENTS):
        teacher_d, teacher_e = d[teacher_of(j, STUDENTS, TARGETS)], e[teacher_of(j, STUDENTS, TARGETS)]
        teacher_s = sums[teacher_of(j, STUDENTS, TARGETS)]
        log_t, log_q = log_ratios(d[j], teacher_d, sums[j], teacher_s, beta, temperature)
        # Where a probability is 0, so is its term.
        log_t = tl.where(teacher_e > 0, teacher_e * log_t, 0.0)
        log_q = tl.where(e[j] > 0, e[j] * log_q, 0.0)
        of_t = of_t + (thread_sum(log_t, THREADS, RUN),)
        of_q = of_q + (thread_sum(log_q, THREADS, RUN),)
    of_t = tl.sum(stack(of_t, 0.0, WIDTH), 1) / teacher_sums(s, STUDENTS, WIDTH, TARGETS)
    of_q = tl.sum(stack(of_q, 0.0, WIDTH), 1) / s
    # A negative result of rounding becomes 0.
    return tl.maximum(beta * of_t + (1.0 - beta) * of_q, 0.0, propagate_nan=tl.PropagateNan.ALL), of_q


@triton.jit
def js_gradient(
    d, e, s, of_q, per_kd, beta, temperature, j: tl.constexpr, STUDENTS: tl.constexpr, TARGETS: tl.constexpr
):
    """What student j's gradient [R, C] subtracts; of_q are the KL(q || m) and, like s, a tuple of members [R]."""
    teacher_d, teacher_s = d[teacher_of(j, STUDENTS, TARGETS)], s[teacher_of(j, STUDENTS, TARGETS)]
    _, log_q = log_ratios(d[j], teacher_d, s[j], teacher_s, beta, temperature)
    per_q = ((beta - 1.0) * per_kd / s[j])[:, None]
    return tl.where(e[j] > 0, per_q * e[j] * (log_q - of_q[j][:, None]), 0.0)


@triton.jit
def target_terms(
    d, e, s, cross, of_q, mixing, per_kd, beta, temperature, j: tl.constexpr, STUDENTS: tl.constexpr,
    TARGETS: tl.constexpr, DIVERGENCE: tl.constexpr,
):  # fmt: skip
    """What student j's gradient [R, C] subtracts, and the weight of the student's own softmax in it.

    s, cross and of_q are tuples of members [R]; of_q is read for js alone, and cross for the reverse divergence.
    """
    share = 0.0
    if DIVERGENCE == FORWARD:
        less, share = target_gradient(e, s, mixing, per_kd, j, STUDENTS, TARGETS)
    elif DIVERGENCE == REVERSE:
        less = reverse_gradient(d, e, s, cross, per_kd, temperature, j, STUDENTS, TARGETS)
    else:
        less = js_gradient(d, e, s, of_q, per_kd, beta, temperature, j, STUDENTS, TARGETS)
    return less, share
