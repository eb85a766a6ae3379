// Checks of labels that are given as probabilities, compiled once for each instruction set (setup.py).
#include <math.h>

#include "cpu/ensemble_kd/ensemble_kd_elements.h"

namespace oekd::OEKD_ISA {
namespace {

constexpr float TOLERANCE = 1e-2f;  // of a row's sum; half precision of thousands of classes meets it
enum : uint8_t { ONE_HOT = 0, SPREAD = 1, INVALID = 2 };

uint8_t kind(float sum, float least, float largest, int32_t others_than_zero) {
  if (!(least >= 0) || !(sum >= 1 - TOLERANCE && sum <= 1 + TOLERANCE)) return INVALID;
  return largest == 1 && others_than_zero == 1 ? ONE_HOT : SPREAD;
}

// The numbers at `t` and after it, padded with 0.
template <class T>
vf load_from(const T* t, int64_t left) {
  return left < LANES ? load_part(t, left, 0.0f) : load_float(t);
}

// Rows whose classes are side by side.
template <class T>
void classify_row(const LabelRows& l, int64_t row, const T* t) {
  vf least = splat(INFINITY), largest = splat(-INFINITY), sum = {};
  vi others = {};
  for (int64_t c = 0; c < l.classes; c += LANES) {
    const vf x = load_from(t + c, l.classes - c);
    least = x < least ? x : least;
    largest = max(x, largest);
    sum += x;
    others -= x != vf{};
  }
  const float most = max_across(largest);
  int32_t others_than_zero = 0;
  for (int i = 0; i < LANES; ++i) others_than_zero += others[i];
  l.spread[row] = kind(static_cast<float>(sum_across(sum)), -max_across(-least), most, others_than_zero);
  if (l.spread[row] == INVALID) return;
  for (int64_t c = 0;; c += LANES) {
    const vi equal = load_from(t + c, l.classes - c) == splat(most);
    for (int i = 0; i < LANES; ++i) {
      if (!equal[i]) continue;
      l.largest[row] = c + i;
      return;
    }
  }
}

// Up to LANES rows beside each other, whose elements are `stride` apart.
template <class T>
void classify_lanes(const LabelRows& l, int64_t row, int64_t n, const T* t, int64_t stride, int64_t class_stride) {
  vf least = splat(INFINITY), largest = splat(-INFINITY), sum = {};
  vi others = {}, first = {};
  for (int64_t c = 0; c < l.classes; ++c) {
    T part[LANES] = {};
    const T* src = t + c * class_stride;
    const bool whole = stride == 1 && n == LANES;
    for (int64_t i = 0; !whole && i < n; ++i) part[i] = src[i * stride];
    const vf x = load_float(whole ? src : part);
    const auto larger = x > largest;
    first = larger ? vi{} + static_cast<int32_t>(c) : first;
    largest = larger ? x : largest;
    least = x < least ? x : least;
    sum += x;
    others -= x != vf{};
  }
  for (int64_t i = 0; i < n; ++i) {
    l.largest[row + i] = first[i];
    l.spread[row + i] = kind(sum[i], least[i], largest[i], others[i]);
  }
}

}  // namespace

void ensemble_kd_labels(const LabelRows& l, int64_t begin, int64_t end) {
  const Matrix& m = l.probabilities.matrix;
  with_dtype(l.probabilities.dtype, [&]<class T>(T) {
    for (int64_t row = begin; row < end;) {
      const int64_t inner = row % l.inner;
      const T* t = static_cast<const T*>(m.data) + row / l.inner * m.outer_stride + inner * m.inner_stride;
      if (m.class_stride == 1) {
        classify_row(l, row++, t);
        continue;
      }
      int64_t n = l.inner - inner < end - row ? l.inner - inner : end - row;
      n = n < LANES ? n : LANES;
      classify_lanes(l, row, n, t, m.inner_stride, m.class_stride);
      row += n;
    }
  });
}

}  // namespace oekd::OEKD_ISA
