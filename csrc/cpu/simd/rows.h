// Copies of rows of floats: as they are, divided into even and odd columns, and transposed. Compiled like vec.h.
#pragma once

#include <utility>

#include "cpu/simd/vec.h"

namespace oekd::OEKD_ISA {

namespace detail {

// Lanes first, first + step, ... of the 2 * LANES lanes of a and b.
template <int FIRST, int STEP, size_t... I>
inline vf pick(vf a, vf b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (FIRST + STEP * static_cast<int>(I))...);
}

// Lanes FIRST.. of a and b in turn.
template <int FIRST, size_t... I>
inline vf zip(vf a, vf b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (FIRST + static_cast<int>(I) / 2 + static_cast<int>(I) % 2 * LANES)...);
}

// Exchanges lanes with bit STEP in a for lanes without it in b.
template <int STEP, size_t... I>
inline void exchange(vf& a, vf& b, std::index_sequence<I...>) {
  const vf low = a, high = b;
  a = __builtin_shufflevector(low, high, (I & STEP ? LANES + static_cast<int>(I) - STEP : static_cast<int>(I))...);
  b = __builtin_shufflevector(low, high, (I & STEP ? LANES + static_cast<int>(I) : static_cast<int>(I) + STEP)...);
}

}  // namespace detail

using EachLane = std::make_index_sequence<LANES>;

// Transposes LANES rows of LANES columns.
template <int STEP = 1>
inline void transpose(vf (&rows)[LANES]) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) {
    if (!(i & STEP)) detail::exchange<STEP>(rows[i], rows[i + STEP], EachLane{});
  }
  if constexpr (2 * STEP < LANES) transpose<2 * STEP>(rows);
}

inline void copy_row(const float* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) store(to + i, load<vf>(from + i));
  for (; i + LANES / 2 <= n; i += LANES / 2) store(to + i, load<vhf>(from + i));
  for (; i < n; ++i) to[i] = from[i];
}

// Copies the even columns of a row of `n` columns to `even`, and the odd ones to `odd` unless that is null.
inline void split_row(const float* from, int64_t n, float* even, float* odd) {
  int64_t i = 0;
  for (; 2 * (i + LANES) <= n; i += LANES) {
    const vf a = load<vf>(from + 2 * i), b = load<vf>(from + 2 * i + LANES);
    store(even + i, detail::pick<0, 2>(a, b, EachLane{}));
    if (odd) store(odd + i, detail::pick<1, 2>(a, b, EachLane{}));
  }
  for (; 2 * i + LANES <= n; i += LANES / 2) {
    const vf a = load<vf>(from + 2 * i);
    store(even + i, bits<Halves>(detail::pick<0, 2>(a, a, EachLane{})).low);
    if (odd) store(odd + i, bits<Halves>(detail::pick<1, 2>(a, a, EachLane{})).low);
  }
  for (; 2 * i < n; ++i) {
    even[i] = from[2 * i];
    if (odd && 2 * i + 1 < n) odd[i] = from[2 * i + 1];
  }
}

// The inverse of split_row.
inline void merge_row(const float* even, const float* odd, int64_t n, float* to) {
  int64_t i = 0;
  for (; 2 * (i + LANES) <= n; i += LANES) {
    const vf a = load<vf>(even + i), b = load<vf>(odd + i);
    store(to + 2 * i, detail::zip<0>(a, b, EachLane{}));
    store(to + 2 * i + LANES, detail::zip<LANES / 2>(a, b, EachLane{}));
  }
  for (; 2 * i + LANES <= n; i += LANES / 2) {
    const vf a = bits<vf>(Halves{load<vhf>(even + i), vhf{}}), b = bits<vf>(Halves{load<vhf>(odd + i), vhf{}});
    store(to + 2 * i, detail::zip<0>(a, b, EachLane{}));
  }
  for (; 2 * i < n; ++i) {
    to[2 * i] = even[i];
    if (2 * i + 1 < n) to[2 * i + 1] = odd[i];
  }
}

}  // namespace oekd::OEKD_ISA
