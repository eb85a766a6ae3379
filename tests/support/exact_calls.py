"""The float64 result of a random call by explicit formulas, and the sizes of the terms whose differences they are.

It shares no code with the package and uses no autograd. A divergence is a cross-entropy minus an entropy, and a
gradient is a difference of probabilities. Where the terms are nearly equal, no float32 computation is exact relative to
their difference, so that rounding errors are measured relative to the terms.

The terms follow from a rounding analysis of first order, in units of the rounding error of float32, eps = 2^-24:

- An exponent is a logit, or a sum of weighted logits, over T. Rounding changes it by eps times its size a_c, which is
  |z_c| / T, or sum_i |w_i z_ic| / T. Then the softmax t changes by up to t_c ((1 - t_c) a_c + sum_{k != c} t_k a_k), a
  divergence sum_c t_c g_c, where g_c = log t_c - log q_c, by up to sum_c t_c |g_c - KL| a_c, and a mean sum_c t_c z_c
  by up to sum_c t_c |z_c - mean| a_c. These are terms as well. For a mixture whose softmax is undecided between two
  large logits, they are larger than all others.
- A sum s of exponentials, the largest of which is 1, is rounded by eps s, or loses what is added to 1 if that is less.
  This changes log s, a part of all log-probabilities, by min(eps, s - 1). It is a term of size min(1, (s - 1) / eps).
- An exponential or a gradient below 2^-126, the smallest normal float32 number, may become 0. That is a rounding error
  of a term of size 2^-102.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .exact_standards import Standardised
from .random_calls import RandomCall

EPS = 2.0**-24
FLUSHED = 2.0**-102  # size of a term that rounding may change by the smallest normal float32 number


@dataclass(frozen=True)
class Exact:
    """A quantity in float64, and the sum of the absolute values of the terms that it is made of."""

    value: Tensor
    terms: Tensor


@dataclass(frozen=True)
class _Pair:
    """The divergence of the students from a target, [S, B, 1], its gradients over T, [S, B, C], and their terms."""

    value: Tensor
    terms: Tensor
    grad: Tensor
    grad_terms: Tensor


class ExactCall:
    """The results of a call.

    Attributes:
        results: loss and ensemble_ce, scalars; ce and kd, [S]; grads, [S, B, C]; with weights, weights_grad as these.
            Without a reduction, loss and ensemble_ce are [B], ce and kd [S, B].
        correct: [S + 1] rows whose first largest logit is the label.
        unsure: rows in which rounding decides whether the ensemble is correct.
    """

    def __init__(self, call: RandomCall) -> None:
        call = call.exact()
        self.options, self.target, self.z = call.options, call.target, torch.stack(call.logits)
        self.teachers = call.options.get("teacher_logits", [])
        self.temperature = float(self.options["temperature"])
        self.counted = torch.ones(self.z.shape[1], dtype=torch.bool)
        if self.target is not None and not call.has_probabilities:
            self.target = self.target.long()
            self.counted = self.target != self.options["ignore_index"]
        self.each = self._shares(self.counted.double())
        self.each_label = self._shares(self._label_weights())
        weights = self.options.get("ensemble_weights")
        given = weights
        if weights is None:
            weights = torch.full((len(self.z),), 1 / len(self.z), dtype=torch.float64)
        self.weights = weights[:, None, None] if weights.dim() == 1 else weights.t()[:, :, None]  # [S, B or 1, 1]
        self.ensemble = _weighted(self.weights, self.z)

        kd, grads, terms = self._divergences()
        zero = self._reduced(torch.zeros(self.z.shape[:2], dtype=torch.float64), self.each)
        ce, ensemble_ce = Exact(zero, zero), Exact(zero.sum(dim=0), zero.sum(dim=0))
        weights_grad = torch.zeros(2, *self.z.shape[:2], dtype=torch.float64)
        self.correct, self.unsure = torch.zeros(len(self.z) + 1, dtype=torch.int64), 0
        if self.target is not None:
            label = self._label()
            ce, ensemble_ce = self._cross_entropies(label)
            p, of_ensemble = self.z.softmax(dim=2), self.ensemble.softmax(dim=1)
            ce_weight, ensemble_weight = (float(self.options[n]) for n in ("ce_weight", "ensemble_ce_weight"))
            each, total = self.each_label[:, None], label.sum(dim=1, keepdim=True)
            grads = grads + each * ce_weight * (total * p - label)
            grads = grads + each * ensemble_weight * self.weights * (total * of_ensemble - label)
            sizes = self._ensemble_sizes()
            changes = softmax_changes(of_ensemble, sizes)
            terms = terms + each * abs(ce_weight) * (total * p + label)
            terms = terms + each * abs(ensemble_weight) * self.weights.abs() * (total * (of_ensemble + changes) + label)
            finite = _finite(self.z)
            mean = (of_ensemble * finite).sum(dim=2)
            distances = (finite - mean[:, :, None]).abs()
            weights_terms = (total * of_ensemble + label) * finite.abs() + total * of_ensemble * distances * sizes
            weights_grad = ensemble_weight * torch.stack(
                [total[:, 0] * mean - (label * finite).sum(dim=2), weights_terms.sum(dim=2)]
            )
            self._count_correct()
        scale = torch.as_tensor(self.options.get("grad_scale", 1.0), dtype=torch.float64)
        of_rows = scale[:, None] if scale.dim() else scale
        grads, terms = (of_rows * x.masked_fill(~self.counted[:, None], 0.0) for x in (grads, terms))
        self.results = {"ce": ce, "kd": kd, "ensemble_ce": ensemble_ce, "grads": Exact(grads, terms.abs() + FLUSHED)}
        if given is not None:
            of_rows = (
                (scale * weights_grad * self.each_label).masked_fill(~self.counted, 0.0).transpose(1, 2)
            )  # [2, B, S]
            value, terms = of_rows if given.dim() == 2 else of_rows.sum(dim=1)
            self.results["weights_grad"] = Exact(value, terms.abs() + FLUSHED)
        self.results["loss"] = self._loss()

    def _loss(self) -> Exact:
        value = terms = torch.zeros((), dtype=torch.float64)
        for name, option in (("kd", "kd_weight"), ("ce", "ce_weight"), ("ensemble_ce", "ensemble_ce_weight")):
            weight = float(self.options[option])
            if weight or name == "kd":  # a term of weight 0 is left out, except for the divergence
                of_students = self.results[name].value, self.results[name].terms
                if name != "ensemble_ce":
                    of_students = (x.sum(dim=0) for x in of_students)
                plain, size = of_students
                value, terms = value + weight * plain, terms + abs(weight) * size
        return Exact(value, terms)

    def _shares(self, weights: Tensor) -> Tensor:
        """Return what each row contributes to a mean whose divisor is the sum of these weights."""
        if self.options["reduction"] != "mean":
            return self.counted.double()
        divisor = float(self.options.get("num_items") or weights.sum())
        return self.counted.double() / divisor if divisor else torch.zeros_like(self.counted, dtype=torch.float64)

    def _label_weights(self) -> Tensor:
        """Return the weights of the labels; 1 for probabilities."""
        if self.target is None or self.target.is_floating_point():
            return self.counted.double()
        weight = self.options.get("weight")
        weight = torch.ones(self.z.shape[2], dtype=torch.float64) if weight is None else weight
        return weight[self.target.where(self.counted, 0)].where(self.counted, 0.0)

    def _reduced(self, per_row: Tensor, each: Tensor) -> Tensor:
        values = per_row.masked_fill(~self.counted, 0.0) * each
        return values if self.options["reduction"] == "none" else values.sum(dim=-1)

    def _label(self) -> Tensor:
        """Return the labels as distributions times the class weights, [B, C]."""
        smoothing, rows = self.options["label_smoothing"], self.counted.nonzero()[:, 0]
        if self.target.is_floating_point():
            label = (1.0 - smoothing) * self.target
        else:
            label = torch.zeros_like(self.z[0])
            label[rows, self.target[rows]] = 1.0 - smoothing
        label = label + smoothing / label.shape[1]
        return label if "weight" not in self.options else label * self.options["weight"]

    def _cross_entropies(self, label: Tensor) -> tuple[Exact, Exact]:
        """Return the cross-entropies of the students and of the ensemble."""
        total = label.sum(dim=1)

        def of(z: Tensor, sizes: Tensor | float) -> Exact:
            log_p = z.log_softmax(dim=-1)
            value = self._reduced(-(label * log_p).masked_fill(label == 0, 0.0).sum(dim=-1), self.each_label)
            sums = self._reduced(total * (log_sum_terms(log_p)[..., 0] + sizes), self.each_label)
            return Exact(value, value + sums)

        # The logits of the ensemble are rounded.
        return of(self.z, 0.0), of(self.ensemble, self._ensemble_sizes().amax(dim=1))

    def _ensemble_sizes(self) -> Tensor:
        return (self.weights * _finite(self.z)).abs().sum(dim=0)

    def _count_correct(self) -> None:
        for j, scores in enumerate((*self.z, self.ensemble)):
            target = self.target.argmax(dim=1) if self.target.is_floating_point() else self.target
            self.correct[j] = ((scores.argmax(dim=1) == target) & self.counted).sum()
        largest = self.ensemble.topk(min(2, self.ensemble.shape[1]), dim=1).values
        self.unsure = int((largest[:, 0] - largest[:, -1] <= 1e-6 * self._ensemble_sizes().amax(dim=1)).sum())

    def _divergences(self) -> tuple[Exact, Tensor, Tensor]:
        """Return T^2 times the divergences, and the gradients of a row with their terms."""
        students = Standardised.of(self.z) if self.options.get("standardise_logits") else None
        log_q = ((self.z if students is None else students.z) / self.temperature).log_softmax(dim=2)
        of_pair = {"forward": _forward, "reverse": _reverse, "js": self._jensen_shannon, "decoupled": self._decoupled}
        pair_of = of_pair[self.options.get("divergence", "forward")]
        value, terms = 0.0, 0.0
        grads, grad_terms = torch.zeros_like(self.z), torch.zeros_like(self.z)
        factor, each = float(self.options["kd_weight"]) * self.temperature, self.each[:, None]
        for weight, log_t, sizes in self._targets():
            pair = pair_of(log_t, log_q, sizes, weight == 0)
            if students is not None:
                pair = _through(students, pair, self.temperature)
            value = value + (weight * pair.value)[:, :, 0]
            of_sums = log_sum_terms(log_q) + log_sum_terms(log_t)
            terms = terms + (weight.abs() * (pair.terms + of_sums))[:, :, 0]
            grads += each * factor * weight * pair.grad
            grad_terms += each * abs(factor) * weight.abs() * pair.grad_terms
        squared = self.temperature**2
        reduced = (squared * self._reduced(x, self.each) for x in (value, terms))
        return Exact(*reduced), grads, grad_terms

    def _jensen_shannon(self, log_t: Tensor, log_q: Tensor, sizes: Tensor, unused: Tensor) -> _Pair:
        beta = self.options["beta"]
        t, q = log_t.exp(), log_q.exp()
        log_m = torch.logaddexp(log_t + math.log(beta), log_q + math.log1p(-beta))  # of subnormal numbers too
        of_t, of_q = (_log_terms(p, log_p - log_m, unused) for p, log_p in ((t, log_t), (q, log_q)))
        kl_t, kl_q = (t * of_t).sum(dim=2, keepdim=True), (q * of_q).sum(dim=2, keepdim=True)
        # Each ratio of probabilities is rounded, and each probability by its exponent times the rounding error.
        size_t, size_q = (_log_terms(p, -log_p, unused) for p, log_p in ((t, log_t), (q, log_q)))
        of_class = t * (1 + of_t.abs()) + q * (1 + of_q.abs())
        change = beta * t * (of_t - kl_t).abs() * (sizes + size_t) + (1 - beta) * q * (of_q - kl_q).abs() * size_q
        mean = (q * (1 + of_q.abs() + size_q)).sum(dim=2, keepdim=True)
        moved = sizes + (t * sizes).sum(dim=-1, keepdim=True)
        return _Pair(
            beta * kl_t + (1 - beta) * kl_q,
            (of_class + change).sum(dim=2, keepdim=True),
            (1 - beta) * q * (of_q - kl_q),
            (1 - beta) * q * (1 + of_q.abs() + size_q + mean + moved),
        )

    def _decoupled(self, log_t: Tensor, log_q: Tensor, sizes: Tensor, unused: Tensor) -> _Pair:
        beta, labels = self.options["beta"], self.target.where(self.counted, 0)
        is_label = torch.nn.functional.one_hot(labels, log_t.shape[-1]).bool()

        def split(log_p: Tensor) -> tuple[Tensor, Tensor]:
            others = log_p.masked_fill(is_label, -math.inf)
            whole = others.logsumexp(dim=-1, keepdim=True)
            of_label = log_p.masked_fill(~is_label, -math.inf).amax(dim=-1, keepdim=True)
            log_others = (others - whole).nan_to_num(nan=-math.inf)  # no other class
            return torch.cat((of_label, whole), dim=-1), log_others

        (b_t, r_t), (b_q, r_q) = split(log_t), split(log_q)
        b_t, r_t = (x.expand(len(self.z), -1, -1) for x in (b_t, r_t))
        sizes = sizes.expand_as(r_t)
        t_y, q_y = b_t[..., :1].exp(), b_q[..., :1].exp()
        # The exponent of all others changes by the mean of their changes, and by the rounding of their sum.
        whole = (r_t.exp() * sizes).sum(dim=-1, keepdim=True) + 1.0
        of_label = sizes.masked_fill(~is_label, 0.0).sum(dim=-1, keepdim=True)
        binary = _forward(b_t, b_q, torch.cat((of_label, whole), dim=-1), unused)
        inner = _forward(r_t, r_q, sizes.masked_fill(is_label, 0.0), unused)
        gap = q_y - t_y
        gap_terms = binary.grad_terms[..., :1]
        q = r_q.exp()
        grad = torch.where(is_label, gap, beta * inner.grad - gap * q)
        grad_terms = torch.where(is_label, gap_terms, beta * inner.grad_terms + gap_terms * q)
        # The sums of the other classes' exponentials are rounded, also where the label's class is far above them.
        rounded = beta * (log_sum_terms(r_t) + log_sum_terms(r_q)).nan_to_num(nan=0.0)  # NaN without any
        return _Pair(binary.value + beta * inner.value, binary.terms + beta * inner.terms + rounded, grad, grad_terms)

    def _targets(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return weights, log-probabilities from which the students learn, and sizes of their exponents.

        Each is broadcast to [S, B, C].
        """
        mixing, one = self.options.get("mixing"), torch.ones(1, 1, 1, dtype=torch.float64)

        def of(scores: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
            if self.options.get("standardise_logits"):
                standardised = Standardised.of(scores, sizes)
                scores, sizes = standardised.z, standardised.sizes
            return (scores / self.temperature).log_softmax(dim=-1), sizes / self.temperature

        if mixing is None:
            scores, sizes = self.ensemble, self._ensemble_sizes()
            if self.teachers:
                scores = self.teachers[0]
                sizes = _finite(scores).abs()
            return [(one, *of(scores, sizes))]
        sources = torch.stack([*self.z, *self.teachers])
        sizes = _finite(sources).abs()
        if self.options["mixing_space"] == "logits":
            weights = mixing[:, :, None, None]
            return [(one, *of(_weighted(weights, sources), _weighted(weights.abs(), sizes)))]
        return [(w[:, None, None], *of(*source)) for w, *source in zip(mixing.unbind(1), sources, sizes, strict=True)]


def _through(students: Standardised, pair: _Pair, temperature: float) -> _Pair:
    """Return the divergence from standardised students with the gradients of their logits, over T."""
    sizes, terms = students.sizes / temperature, pair.grad_terms  # of the students' exponents
    change = (pair.grad.abs() * sizes).sum(dim=2, keepdim=True)
    moved = sizes + (terms * sizes).sum(dim=2, keepdim=True)
    return _Pair(
        pair.value, pair.terms + change, *students.through(pair.grad, terms + 2 * terms * moved + terms * change)
    )


def _forward(log_t: Tensor, log_q: Tensor, sizes: Tensor, unused: Tensor) -> _Pair:
    t, q = log_t.exp(), log_q.exp()
    unused = (t == 0) | unused
    gap = (log_t - log_q).masked_fill(unused, 0.0)
    value = (t * gap).sum(dim=2, keepdim=True)
    of_class = (t + FLUSHED) * -log_q.masked_fill(unused, 0.0)
    # An infinite divergence is compared as such.
    change = t * (gap - value.nan_to_num(posinf=0.0)).abs() * sizes
    terms = (of_class + change).sum(dim=2, keepdim=True)
    return _Pair(value, terms, q - t, q + t + softmax_changes(t, sizes))


def _reverse(log_t: Tensor, log_q: Tensor, sizes: Tensor, unused: Tensor) -> _Pair:
    t, q = log_t.exp(), log_q.exp()
    gap = _log_terms(q, log_q - log_t, unused)
    logs = _log_terms(q, -log_q - log_t, unused)  # sizes of the terms of the gap
    value = (q * gap).sum(dim=2, keepdim=True)
    terms = ((q + FLUSHED) * logs + (q - t).abs() * sizes).sum(dim=2, keepdim=True)
    terms = terms + (q * (gap - value).abs() * logs).sum(dim=2, keepdim=True)
    mean = (q * logs).sum(dim=2, keepdim=True)
    moved = sizes + (t * sizes).sum(dim=-1, keepdim=True)
    grad_terms = q * (logs + mean + moved + (gap - value).abs() * (logs + mean))
    return _Pair(value, terms, q * (gap - value), grad_terms)


def _log_terms(p: Tensor, logs: Tensor, unused: Tensor) -> Tensor:
    """Return logarithms that p multiplies: 0 where p is 0."""
    return logs.masked_fill((p == 0) | unused, 0.0)


def _finite(z: Tensor) -> Tensor:
    """Return `z` with 0 in place of infinite logits."""
    return z.masked_fill(~z.isfinite(), 0.0)


def log_sum_terms(log_p: Tensor) -> Tensor:
    """Return the size [..., 1] of the term log(sum of exponentials) of log-probabilities; see the top of this file."""
    p = log_p.exp().sort(dim=-1, descending=True).values
    others = p[..., 1:].sum(dim=-1, keepdim=True) / p[..., :1]  # s - 1, also where s is 1 in float64
    return (others / EPS).clamp(max=1.0) + FLUSHED * log_p.shape[-1]


def softmax_changes(p: Tensor, sizes: Tensor) -> Tensor:
    """Return by how much a softmax changes, in units of eps, if its exponents change by eps times their sizes."""
    others = (p * sizes).sum(dim=-1, keepdim=True) - p * sizes
    return p * ((1.0 - p) * sizes + others)


def _weighted(weights: Tensor, sources: Tensor) -> Tensor:
    """Weigh `sources`, [n, B, C], by `weights`, [..., n, B or 1, 1]; a weight of 0 excludes logits of -inf."""
    return (weights * sources).masked_fill(weights == 0, 0.0).sum(dim=-3)
