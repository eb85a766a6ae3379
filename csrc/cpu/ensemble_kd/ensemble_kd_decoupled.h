// The decoupled divergence: with b the probabilities of the label's class and of all others together, and t' and q' the
// softmaxes over the other classes,
//   T^2 [KL(b_t || b_q) + beta KL(t' || q')].
// With g = q_y - t_y, its gradient is T g for the label's class y, and T [(beta - g) q'_i - beta t'_i] for another class.
//
// Exponentials at T are relative to the largest logit of the other classes, so that t' and q' are accurate also where the
// label's class is nearly certain. That of the label is cut off at 1 where it is computed, and then left out.
// Source: Zhao et al., "Decoupled knowledge distillation", CVPR 2022, arXiv 2203.08679, section 3.
#pragma once

#include <math.h>

#include "cpu/ensemble_kd/ensemble_kd_tile.h"

namespace oekd::OEKD_ISA {
namespace {

// What a member has beside the sums over the other classes.
struct Aside {
  float label;          // the label's logit
  double odds;          // log (p / (1 - p)) of the label's class at T
  double label_at_1;    // e^(label - largest)
  double others_at_1;   // e^(max - largest), which makes sums at T = 1 relative to the largest of all logits
};

inline double softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }
inline double probability(double odds) { return 1 / (1 + exp(-odds)); }

// KL(b_t || b_q) from log (p / (1 - p)) of both. A term whose weight is 0 is 0.
inline double binary_divergence(double target, double student) {
  const double p = probability(target), others = probability(-target);
  const double of_label = p == 0 ? 0.0 : p * (softplus(-student) - softplus(-target));
  return of_label + (others == 0 ? 0.0 : others * (softplus(student) - softplus(target)));
}

// The largest logit of a tile but that in `column`.
inline float largest_of_others(float* z, int64_t padded, int64_t column) {
  const float label = z[column];
  z[column] = -INFINITY;
  vf m = splat(-INFINITY);
  for (int64_t c = 0; c < padded; c += LANES) m = max(load<vf>(z + c), m);
  z[column] = label;
  return max_across(m);
}

}  // namespace
}  // namespace oekd::OEKD_ISA
