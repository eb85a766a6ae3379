// Standardised logits of a vector of rows; ensemble_kd_standardised.h has the formulas.
#pragma once

#include "cpu/ensemble_kd/ensemble_kd_standardised.h"
#include "cpu/ensemble_kd/ensemble_kd_wide.h"

namespace oekd::OEKD_ISA {
namespace {

// As Standard, one value a row.
struct LaneStandard {
  vf mean, scale, factor;
  Wide number;
};

// `most` holds the largest logits.
LaneStandard standard_of(const float* z, int64_t pitch, int64_t classes, vf most) {
  constexpr int HALF = LANES / 2;
  Wide totals[2] = {};
  sum_classes(classes, totals, [&](int64_t c, vf (&s)[2]) {
    const vf x = load<vf>(z + c * pitch);
    const auto given = x != splat(-INFINITY);
    s[0] += given ? x - most : vf{};
    s[1] += given ? splat(1.0f) : vf{};
  });
  LaneStandard standard;
  standard.number = totals[1];
  vd means[2];
  for (int h = 0; h < 2; ++h) {
    const vd number = totals[1].half[h];
    means[h] = totals[0].half[h] / (number == vd{} ? number + 1.0 : number);
  }
  standard.mean = to_float(means[0], means[1]);
  Wide squares[1] = {};
  sum_classes(classes, squares, [&](int64_t c, vf (&s)[1]) {
    const vf x = load<vf>(z + c * pitch), gap = x - most - standard.mean;
    s[0] += x != splat(-INFINITY) ? gap * gap : vf{};
  });
  double factors[LANES], scales[LANES];
  for (int i = 0; i < LANES; ++i) {
    const int h = i / HALF, k = i % HALF;
    factors[i] = Moments{totals[1].half[h][k], 0.0, squares[0].half[h][k]}.inverse_sd();
    scales[i] = factors[i] == 0 ? CONSTANT_SCALE : factors[i];
  }
  const Wide factor = load<Wide>(factors), scale = load<Wide>(scales);
  standard.factor = to_float(factor.half[0], factor.half[1]);
  standard.scale = to_float(scale.half[0], scale.half[1]);
  return standard;
}

// Replaces a student's exponentials by the gradients of its distillation term for the logits. `targets` are the
// exponentials of the target, `standard` the student's standardised logits; b and c make softmaxes times kd_weight T.
void toward_targets(float* z, int64_t pitch, const float* targets, const float* standard, int64_t classes, vf b, vf c,
                    const LaneStandard& own) {
  Wide totals[1] = {};
  sum_classes(classes, totals, [&](int64_t i, vf (&s)[1]) {
    const vf x = load<vf>(z + i * pitch) * b - load<vf>(targets + i * LANES) * c, at = load<vf>(standard + i * LANES);
    store(z + i * pitch, x);
    s[0] += at == splat(-INFINITY) ? vf{} : x * at;
  });
  vd means[2];
  for (int h = 0; h < 2; ++h) {
    const vd number = own.number.half[h];
    means[h] = totals[0].half[h] / (number == vd{} ? number + 1.0 : number);
  }
  const vf mean = own.factor == vf{} ? vf{} : to_float(means[0], means[1]);
  for (int64_t i = 0; i < classes; ++i) {
    const vf at = load<vf>(standard + i * LANES), x = load<vf>(z + i * pitch);
    store(z + i * pitch, at == splat(-INFINITY) ? vf{} : (x - at * mean) * own.factor);
  }
}

}  // namespace
}  // namespace oekd::OEKD_ISA
