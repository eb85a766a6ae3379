// The reverse and the Jensen-Shannon divergence on a tile of columns of one row.
//
// With t and q the target's and the student's softmax at T, and m = beta t + (1 - beta) q:
//   reverse  T^2 KL(q || t)                                      d/dz_c:  T q_c (log q_c/t_c - KL(q || t))
//   js       T^2 [beta KL(t || m) + (1 - beta) KL(q || m)]       d/dz_c:  T (1 - beta) q_c (log q_c/m_c - KL(q || m))
// Agarwal et al., "On-policy distillation of language models", ICLR 2024, arXiv 2306.13649, eq. 1.
#pragma once

#include "cpu/ensemble_kd/ensemble_kd_tile.h"
#include "cpu/simd/log.h"

namespace oekd::OEKD_ISA {
namespace {

// Logits of a tile, with what makes them a softmax: e^((z - shift) * rate) * share. The rate is 1/T, or 1/(T sd) for
// standardised logits.
struct Scores {
  const float* z;
  float shift, share, rate;
};

// log p/m where m = p + share (other - p), as -log1p(share (other - p)/p): where p and `other` are close, so that their
// divergence is small, their difference is nearly exact. Finite where p is 0.
inline vf log_ratio(vf p, vf other, float share) {
  const vf x = (other - p) * share / max(p, splat(1.17549435e-38f));
  const vf u = x + 1.0f;
  return -(log_of_normal(u) + (x - (u - 1.0f)) / u);
}

// Calls step(t, q) with the softmaxes of a vector. Padded columns have logits of -inf, and so probabilities of 0.
template <class Step>
inline __attribute__((always_inline)) void softmaxes(const Scores& target, const Scores& student, int64_t c,
                                                     const Step& step) {
  const vf t = exp_nonpositive((load<vf>(target.z + c) - target.shift) * target.rate) * target.share;
  const vf q = exp_nonpositive((load<vf>(student.z + c) - student.shift) * student.rate) * student.share;
  step(t, q);
}

struct JensenShannon {
  double of_target, of_student;  // KL(t || m) and KL(q || m), or the sums of some of their terms
};

JensenShannon js_sums(const Scores& target, const Scores& student, int64_t width, float beta) {
  vf totals[2];
  sum_vectors(width, totals, [&](int64_t c, vf (&s)[2]) {
    softmaxes(target, student, c, [&](vf t, vf q) {
      s[0] += t * log_ratio(t, q, 1 - beta);
      s[1] += q * log_ratio(q, t, beta);
    });
  });
  return {sum_across(totals[0]), sum_across(totals[1])};
}

// sum += factor q (log q/m - mean)
void add_js(float* sum, const Scores& target, const Scores& student, int64_t width, float beta, float factor,
            float mean) {
  for (int64_t c = 0; c < width; c += LANES) {
    softmaxes(target, student, c, [&](vf t, vf q) {
      store(sum + c, load<vf>(sum + c) + q * (log_ratio(q, t, beta) - mean) * factor);
    });
  }
}

// sum += factor e (x - t - mean) with the student's e = e^x and exponents x and t.
void add_reverse(float* sum, const Scores& target, const Scores& student, int64_t width, float factor, float mean) {
  for (int64_t c = 0; c < width; c += LANES) {
    const vf x = (load<vf>(student.z + c) - student.shift) * student.rate;
    const vf e = exp_nonpositive(x);
    const vf gap = x - (load<vf>(target.z + c) - target.shift) * target.rate - mean;
    store(sum + c, load<vf>(sum + c) + (e == vf{} ? vf{} : e * gap) * factor);
  }
}

}  // namespace
}  // namespace oekd::OEKD_ISA
