// Standardised logits, z' = (z - mean z) / sd z, on a tile of columns of one row. Mean and deviation are those of the
// logits that are not -inf.
//
// A softmax does not depend on what all logits share, so that of z'/T is that of z at the temperature T sd. The mean
// matters to the gradient alone. With g' = dL/dz', whose sum over the classes is 0,
//   dL/dz = (g' - z' mean(g' z')) / sd.
// Source: Sun et al., "Logit standardization in knowledge distillation", CVPR 2024, arXiv 2403.01993, algorithm 1.
#pragma once

#include <math.h>

#include "cpu/ensemble_kd/ensemble_kd_tile.h"

namespace oekd::OEKD_ISA {
namespace {

constexpr double LEAST_SD = 1e-7;      // up to this standard deviation a row is constant: z' = 0, without a gradient
constexpr double CONSTANT_SCALE = 1e-30;  // in place of 1/sd; it makes all exponentials but that of -inf 1

// Number, mean and sum of squared distances from the mean, of logits that are not -inf.
struct Moments {
  double number, mean, squares;

  // Joins the moments of two parts of a row. Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample
  // variance", eq. 2.1.
  void add(const Moments& x) {
    const double all = number + x.number;
    if (x.number == 0) return;
    const double gap = x.mean - mean;
    squares += x.squares + gap * gap * (number * x.number / all);
    mean += gap * (x.number / all);
    number = all;
  }

  // 1/sd, or 0 if the row is constant.
  double inverse_sd() const {
    const double sd = number > 0 ? sqrt(squares / number) : 0.0;
    return sd <= LEAST_SD ? 0.0 : 1 / sd;
  }
};

// Moments of a tile that is padded with -inf. The distances from `shift`, the maximum, are nearly exact.
Moments moments_of(const float* z, int64_t width, float shift) {
  vf sums[2];
  sum_vectors(width, sums, [&](int64_t c, vf (&s)[2]) {
    const vf x = load<vf>(z + c);
    const auto given = x != splat(-INFINITY);
    s[0] += given ? x - shift : vf{};
    s[1] += given ? splat(1.0f) : vf{};
  });
  const double number = sum_across(sums[1]), mean = number > 0 ? sum_across(sums[0]) / number : 0.0;
  const float near = static_cast<float>(mean);
  vf squares[1];
  sum_vectors(width, squares, [&](int64_t c, vf (&s)[1]) {
    const vf x = load<vf>(z + c), gap = x - shift - near;
    s[0] += x != splat(-INFINITY) ? gap * gap : vf{};
  });
  return {number, mean + shift, sum_across(squares[0])};
}

// How the logits of a member are standardised: z' = (z - shift - mean) * scale.
struct Standard {
  float mean, scale;  // the mean less the largest logit
  double factor;      // 1/sd, or 0 for a constant row
  double number;      // of logits that are not -inf
  double product;     // students: sum of g' z' over a row in several tiles
};

// Writes g' = b e^(z' / T) - less, and returns the sum of g' z' over the logits that are not -inf.
double toward_target(float* g, const float* z, const float* less, int64_t width, float shift, float rate, float b,
                     const Standard& standard) {
  vf sums[1];
  sum_vectors(width, sums, [&](int64_t c, vf (&s)[1]) {
    const vf d = load<vf>(z + c) - shift;
    const vf x = exp_nonpositive(capped<APART>(d) * rate) * b - load<vf>(less + c);
    store(g + c, x);
    s[0] += d == splat(-INFINITY) ? vf{} : x * ((d - standard.mean) * standard.scale);
  });
  return sum_across(sums[0]);
}

// g = a e^z - less + (g - z' mean) factor; 0 in place of the last term where z is -inf. `mean` is that of g z'.
void add_standardised(float* g, const float* z, const float* less, int64_t width, float shift, float a, float mean,
                      const Standard& standard) {
  const float factor = static_cast<float>(standard.factor);
  for (int64_t c = 0; c < width; c += LANES) {
    const vf d = load<vf>(z + c) - shift;
    const vf through = (load<vf>(g + c) - (d - standard.mean) * standard.scale * mean) * factor;
    const vf own = exp_nonpositive(capped<APART>(d)) * a - load<vf>(less + c);
    store(g + c, own + (d == splat(-INFINITY) ? vf{} : through));
  }
}

}  // namespace
}  // namespace oekd::OEKD_ISA
