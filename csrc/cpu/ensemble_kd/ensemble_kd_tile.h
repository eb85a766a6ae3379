// The ensemble distillation loss on a tile of columns of one row: loops over the vectors of the tile.
#pragma once

#include <math.h>

#include "cpu/ensemble_kd/ensemble_kd_elements.h"

namespace oekd::OEKD_ISA {
namespace {

// Sums of one member (the ensemble, a student or an extra teacher) over a tile, relative to the tile's maximum.
struct TileSums {
  float max;
  double at_t;     // sum e^((z - max)/T)
  double at_1;     // sum e^(z - max)
  double cross;    // students: sum e^((t - maxt)/T) ((t - maxt) - (z - max)) with the target's logits t; for the
                   // reverse divergence with t and z exchanged
  double labels;   // ensemble and students: sum v (z - max), where v is the spread part of the row's label
  double moment;   // students: sum e^(zE - maxE) z over the finite z
  double factor;   // makes e^((z - max)/T) relative to the row's maximum
};

// Calls `step(column, sums)` for the vectors of a tile; each call adds to the N sums. The sums of 8 vectors are added to
// those of the vectors before them, so that a number in a lane is rounded 8 times and once for each of such blocks, not
// once for each vector. Without this, the sum of equal numbers drifts in one direction.
template <int N, class Step>
inline __attribute__((always_inline)) void sum_vectors(int64_t width, vf (&totals)[N], const Step& step) {
  constexpr int64_t BLOCK = 8 * LANES;
  for (vf& total : totals) total = vf{};
  for (int64_t begin = 0; begin < width; begin += BLOCK) {
    const int64_t end = begin + BLOCK < width ? begin + BLOCK : width;
    vf sums[N] = {};
    for (int64_t c = begin; c < end; c += LANES) step(c, sums);
    for (int k = 0; k < N; ++k) totals[k] += sums[k];
  }
}

// dst = z, padded with -inf; if MIX, mixed += w z. Returns the maximum.
template <bool MIX, class T>
float take_logits(const T* z, int64_t n, float w, float* dst, float* mixed) {
  vf m = splat(-INFINITY);
  const auto step = [&](int64_t c, vf v) {
    store(dst + c, v);
    if constexpr (MIX) store(mixed + c, v * w + load<vf>(mixed + c));
    m = max(v, m);
  };
  int64_t c = 0;
  for (; c + LANES <= n; c += LANES) step(c, load_float(z + c));
  if (c < n) step(c, load_part(z + c, n - c, -INFINITY));
  return max_across(m);
}

// z /= divisor. Returns the maximum.
float divide_and_max(float* z, int64_t width, float divisor) {
  vf m = splat(-INFINITY);
  for (int64_t c = 0; c < width; c += LANES) {
    const vf v = load<vf>(z + c) / divisor;
    store(z + c, v);
    m = max(v, m);
  }
  return max_across(m);
}

bool contains(const float* z, int64_t n, float value) {
  int64_t c = 0;
  for (; c + LANES <= n; c += LANES) {
    const vi equal = load<vf>(z + c) == splat(value);
    int32_t any = 0;
    for (int i = 0; i < LANES; ++i) any |= equal[i];
    if (any) return true;
  }
  for (; c < n; ++c) {
    if (z[c] == value) return true;
  }
  return false;
}

// The sum of n logits. Their distances from `shift`, the maximum, are summed in fp32, so that a large value that all
// logits share costs no accuracy.
double sum_of(const float* z, int64_t n, float shift) {
  const int64_t whole = n - n % LANES;
  vf sums[1];
  sum_vectors(whole, sums, [&](int64_t c, vf (&s)[1]) { s[0] += load<vf>(z + c) - shift; });
  double total = sum_across(sums[0]);
  for (int64_t c = whole; c < n; ++c) total += z[c] - shift;
  return total + static_cast<double>(n) * shift;
}

// Writes z - max to `shifted` and e^((z - max)/T) to `exps` for a teacher's tile; either may be z itself.
template <int POWER>
void teacher_exps(const float* z, float* shifted, float* exps, int64_t width, float shift, float inv_t,
                  TileSums& sums) {
  vf totals[2];
  sum_vectors(width, totals, [&](int64_t c, vf (&s)[2]) {
    const vf d = load<vf>(z + c) - shift;
    const vf e = exp_nonpositive(capped<POWER>(d) * inv_t);
    store(shifted + c, d);
    store(exps + c, e);
    s[0] += e;
    s[1] += exp_at_1<POWER>(d, e);
  });
  sums.at_t = sum_across(totals[0]);
  sums.at_1 = sum_across(totals[1]);
}

// d, or d times `scale` where logits are standardised.
template <int POWER>
inline vf scaled(vf d, float scale) {
  if constexpr (POWER == APART) return d * scale;
  return d;
}

// Replaces a student's z by e^((z - max)/T). `target` holds the teacher's t - max, `teacher` e^((t - max)/T). The scales
// are those of student and target.
template <int POWER, bool REVERSE>
void student_exps(float* z, const float* target, const float* teacher, int64_t width, float shift, float inv_t,
                  float scale, float target_scale, TileSums& sums) {
  vf totals[3];
  sum_vectors(width, totals, [&](int64_t c, vf (&s)[3]) {
    const vf d = load<vf>(z + c) - shift;
    const vf e = exp_nonpositive(capped<POWER>(d) * inv_t);
    store(z + c, e);
    s[0] += e;
    s[1] += exp_at_1<POWER>(d, e);
    const vf t = scaled<POWER>(load<vf>(target + c), target_scale), own = scaled<POWER>(d, scale);
    if constexpr (REVERSE) s[2] += cross_term(e, own, t);
    if constexpr (!REVERSE) s[2] += cross_term(load<vf>(teacher + c), t, own);
  });
  sums.at_t = sum_across(totals[0]);
  sums.at_1 = sum_across(totals[1]);
  sums.cross = sum_across(totals[2]);
}

// sum e^((t - maxt)/T) ((t - maxt) - (z - max)) of a teacher and a student, both shifted, with their scales.
template <int POWER>
double cross_sum(const float* teacher, const float* target, const float* shifted, int64_t width, float target_scale,
                 float scale) {
  vf cross[1];
  sum_vectors(width, cross, [&](int64_t c, vf (&s)[1]) {
    const vf t = scaled<POWER>(load<vf>(target + c), target_scale), d = scaled<POWER>(load<vf>(shifted + c), scale);
    s[0] += cross_term(load<vf>(teacher + c), t, d);
  });
  return sum_across(cross[0]);
}

// e^(z - max) of the ensemble, from `shifted` = z - max or `exps` = e^((z - max)/T).
template <int POWER>
void exps_at_1(float* at_1, const float* shifted, const float* exps, int64_t width) {
  for (int64_t c = 0; c < width; c += LANES) {
    store(at_1 + c, exp_at_1<POWER>(load<vf>(shifted + c), load<vf>(exps + c)));
  }
}

// Computes `moment` of a student's tile, for the mean of its logits under the ensemble's softmax at T = 1. Returns the
// sum of the finite logits. They are not shifted: where the student's largest logit has a negative weight, the softmax
// selects logits far from it.
double expectation(const float* z, const float* at_1, int64_t width, TileSums& sums) {
  vf totals[2];
  sum_vectors(width, totals, [&](int64_t c, vf (&s)[2]) {
    const vf x = load<vf>(z + c);
    const auto finite = x > splat(-INFINITY);  // 0 * -inf must be 0
    s[0] += finite ? load<vf>(at_1 + c) * x : vf{};
    s[1] += finite ? x : vf{};
  });
  sums.moment = sum_across(totals[0]);
  return sum_across(totals[1]);
}

// Writes the spread part of a label, v_c = w_c (keep t_c + even), padded with 0. Without t: w_c even; without w: w_c = 1.
template <class T>
void spread_label(const T* t, const float* w, int64_t n, float keep, float even, float* v) {
  for (int64_t c = 0; c < n; c += LANES) {
    const int64_t left = n - c < LANES ? n - c : LANES;
    vf y = splat(even);
    if (t) y += (left < LANES ? load_part(t + c, left, 0.0f) : load_float(t + c)) * keep;
    if (w) y *= left < LANES ? load_part(w + c, left, 0.0f) : load<vf>(w + c);
    store(v + c, left < LANES ? first_lanes(left, y, 0.0f) : y);
  }
}

double sum_of_vectors(const float* x, int64_t width) {
  vf sums[1];
  sum_vectors(width, sums, [&](int64_t c, vf (&s)[1]) { s[0] += load<vf>(x + c); });
  return sum_across(sums[0]);
}

// sum v (z - shift). Terms with v = 0 are 0, also where z is -inf.
double label_sum(const float* v, const float* z, int64_t width, float shift) {
  vf sums[1];
  sum_vectors(width, sums, [&](int64_t c, vf (&s)[1]) {
    const vf y = load<vf>(v + c);
    s[0] += y == vf{} ? vf{} : y * (load<vf>(z + c) - shift);
  });
  return sum_across(sums[0]);
}

// sum v z over the finite z.
double finite_label_sum(const float* v, const float* z, int64_t width) {
  vf sums[1];
  sum_vectors(width, sums, [&](int64_t c, vf (&s)[1]) {
    const vf x = load<vf>(z + c);
    s[0] += x > splat(-INFINITY) ? load<vf>(v + c) * x : vf{};
  });
  return sum_across(sums[0]);
}

// sum += w x
void add_scaled(float* sum, const float* x, float w, int64_t width) {
  for (int64_t c = 0; c < width; c += LANES) store(sum + c, load<vf>(x + c) * w + load<vf>(sum + c));
}

void fill(float* x, float value, int64_t width) {
  for (int64_t c = 0; c < width; c += LANES) store(x + c, splat(value));
}

// g = a e^z + b e^(z/T) - c t - k, where z holds exponentials, or logits if RECOMPUTE. g may be z or `teacher`.
template <int POWER, bool RECOMPUTE>
void gradients(float* g, const float* z, const float* teacher, int64_t width, float shift, float inv_t, float a,
               float b, float c, float k) {
  for (int64_t i = 0; i < width; i += LANES) {
    vf e = load<vf>(z + i), e1;
    if constexpr (RECOMPUTE) {
      const vf d = e - shift;
      e = exp_nonpositive(d * inv_t);
      if constexpr (POWER <= 0) e1 = exp_nonpositive(d);
    }
    if constexpr (POWER > 0) e1 = power<POWER>(e);
    store(g + i, e1 * a + (e * b - (load<vf>(teacher + i) * c + k)));
  }
}

}  // namespace
}  // namespace oekd::OEKD_ISA
