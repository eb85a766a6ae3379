// Sums over the classes of a vector of rows, in doubles.
#pragma once

#include "cpu/simd/vec.h"

namespace oekd::OEKD_ISA {
namespace {

// Doubles of a vector of rows.
struct Wide {
  vd half[2];

  void add(vf x) {
    const Halves parts = bits<Halves>(x);
    half[0] += to_double(parts.low);
    half[1] += to_double(parts.high);
  }
  void add(const Wide& x) {
    half[0] += x.half[0];
    half[1] += x.half[1];
  }
};

inline Wide wide(vf x) {
  const Halves parts = bits<Halves>(x);
  return {to_double(parts.low), to_double(parts.high)};
}

// Calls `step(class, sums)` for all classes; each call adds to the N sums.
template <int N, class Step>
inline __attribute__((always_inline)) void sum_classes(int64_t classes, Wide (&totals)[N], const Step& step) {
  constexpr int64_t BLOCK = 4;
  int64_t c = 0;
  for (; c + BLOCK <= classes; c += BLOCK) {
    vf sums[N] = {};
    for (int64_t i = 0; i < BLOCK; ++i) step(c + i, sums);
    for (int k = 0; k < N; ++k) totals[k].add(sums[k]);
  }
  vf sums[N] = {};
  for (; c < classes; ++c) step(c, sums);
  for (int k = 0; k < N; ++k) totals[k].add(sums[k]);
}

}  // namespace
}  // namespace oekd::OEKD_ISA
