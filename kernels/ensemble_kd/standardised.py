"""Standardised logits, z' = (z - mean z) / sd z over the logits that are not -inf, for the resident kernel.

A softmax does not depend on what all logits share, so that of z'/T is that of d / (T sd) with d = z - m. The mean
matters to the gradient alone. With g' = dL/dz', whose sum over the classes is 0,

    dL/dz = (g' - z' mean(g' z')) / sd

Source: Sun et al., "Logit standardization in knowledge distillation", CVPR 2024, arXiv 2403.01993, algorithm 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .divergences import target_terms
from .row_statistics import stack, thread_sum, unstack

LEAST_SD = tl.constexpr(1e-7)  # up to this standard deviation a row is constant: z' = 0, without a gradient
CONSTANT_SCALE = tl.constexpr(1e-30)  # in place of 1/sd; it makes all exponentials but that of -inf 1


@triton.jit
def standards(d, THREADS: tl.constexpr, RUN: tl.constexpr, WIDTH: tl.constexpr):
    """Mean of d, 1/sd and number of logits of each member, [R, WIDTH]; d is a tuple of members."""
    totals, numbers = (), ()
    for j in tl.static_range(len(d)):
        given = d[j] != -float("inf")
        totals = totals + (thread_sum(tl.where(given, d[j], 0.0), THREADS, RUN),)
        numbers = numbers + (thread_sum(given.to(tl.float32), THREADS, RUN),)
    total, number = tl.split(tl.sum(tl.join(stack(totals, 0.0, WIDTH), stack(numbers, 0.0, WIDTH)), 1))
    number = tl.maximum(number, 1.0)
    mean = total / number
    means = unstack(mean, WIDTH)
    squares = ()
    for j in tl.static_range(len(d)):
        gap = d[j] - means[j][:, None]
        squares = squares + (thread_sum(tl.where(d[j] != -float("inf"), gap * gap, 0.0), THREADS, RUN),)
    sd = tl.sqrt(tl.sum(stack(squares, 0.0, WIDTH), 1) / number)
    return mean, tl.where(sd <= LEAST_SD, CONSTANT_SCALE, 1.0 / sd), number


@triton.jit
def scaled(d, scale, WIDTH: tl.constexpr):
    """d / sd of each member."""
    scales = unstack(scale, WIDTH)
    x = ()
    for j in tl.static_range(len(d)):
        x = x + (d[j] * scales[j][:, None],)
    return x


@triton.jit
def standardised_gradients(
    d, x, e, s, cross, of_q, standard, mixing, per_kd, beta, temperature,
    STUDENTS: tl.constexpr, THREADS: tl.constexpr, RUN: tl.constexpr, WIDTH: tl.constexpr, TARGETS: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):  # fmt: skip
    """Gradients [R, C] of the students' distillation terms; 0 at logits of -inf, which include those outside a row.

    x = d / sd, e and s describe the standardised logits; s, cross and of_q are tuples of members [R], as for
    ``target_terms``.
    """
    mean, scale, number = standard
    means = unstack(mean, WIDTH)
    scales = unstack(scale, WIDTH)
    toward, products = (), ()
    for j in tl.static_range(STUDENTS):
        less, share = target_terms(
            x, e, s, cross, of_q, mixing, per_kd, beta, temperature, j, STUDENTS, TARGETS, DIVERGENCE
        )
        toward = toward + (e[j] * (per_kd * share / s[j])[:, None] - less,)
        own = (d[j] - means[j][:, None]) * scales[j][:, None]
        products = products + (thread_sum(tl.where(d[j] != -float("inf"), toward[j] * own, 0.0), THREADS, RUN),)
    product = unstack(tl.sum(stack(products, 0.0, WIDTH), 1) / number, WIDTH)
    grads = ()
    for j in tl.static_range(STUDENTS):
        own = (d[j] - means[j][:, None]) * scales[j][:, None]
        factor = tl.where(scales[j] == CONSTANT_SCALE, 0.0, scales[j])
        grad = (toward[j] - own * product[j][:, None]) * factor[:, None]
        grads = grads + (tl.where(d[j] != -float("inf"), grad, 0.0),)
    return grads
