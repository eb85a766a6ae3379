// Products of small matrices with a block of sums in registers. Compiled like vec.h.
#pragma once

#include "cpu/simd/blocks.h"

namespace oekd::OEKD_ISA {

// Most vectors of columns in a block, and the rows of a block of V vectors: the sums, a row of the right factor and one
// element of the left factor fit the registers.
constexpr int64_t MOST_BLOCK_VECTORS = 3;
constexpr int64_t block_rows(int64_t vectors) {
  return vectors == 1 ? (REGISTERS == 32 ? 14 : 8) : vectors == 2 ? (REGISTERS == 32 ? 14 : 6) : REGISTERS == 32 ? 9 : 4;
}

// Vectors of the next block of columns, if `left` are left: two as long as possible, and three instead of a single one.
inline int64_t block_vectors(int64_t left) { return left == 1 || left == 3 ? left : 2; }

// Calls use.operator()<V>(first) for the blocks of `vectors` vectors of columns; the block starts at vector `first`.
template <class Use>
inline void column_blocks(int64_t vectors, const Use& use) {
  for (int64_t first = 0; first < vectors;) {
    const int64_t block = block_vectors(vectors - first);
    with_constant<MOST_BLOCK_VECTORS>(block, [&]<int64_t V>() { use.template operator()<V>(first); });
    first += block;
  }
}

// Calls use.operator()<R>(first) for the blocks of `rows` rows beside V vectors, of nearly equal size.
template <int64_t V, class Use>
inline void row_blocks(int64_t rows, const Use& use) {
  for (int64_t first = 0; first < rows;) {
    const int64_t block = part_of(rows - first, block_rows(V));
    with_constant<block_rows(V)>(block, [&]<int64_t R>() { use.template operator()<R>(first); });
    first += block;
  }
}

// Writes R rows and V vectors of columns of left @ right. `right` holds V vectors for each of the `inner` rows, densely.
template <int64_t R, int64_t V>
inline void product(const float* left, int64_t left_row, const float* right, int64_t inner, float* out,
                    int64_t out_row) {
  vf sums[R][V]{};
  for (int64_t i = 0; i < inner; ++i, right += V * LANES) {
    vf b[V];
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) b[v] = keep(load<vf>(right + v * LANES));
#pragma GCC unroll 16
    for (int64_t r = 0; r < R; ++r) {
      const vf a = splat(left[r * left_row + i]);
#pragma GCC unroll 4
      for (int64_t v = 0; v < V; ++v) sums[r][v] += a * b[v];
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) store(out + r * out_row + v * LANES, sums[r][v]);
  }
}

// Adds R rows and V vectors of columns of left^T @ right to `out`.
template <int64_t R, int64_t V>
inline void add_transposed_product(const float* left, int64_t left_row, const float* right, int64_t right_row,
                                   int64_t inner, float* out, int64_t out_row) {
#pragma GCC unroll 16
  for (int64_t r = 0; r < R; ++r) __builtin_prefetch(out + r * out_row, 1, 3);
  vf sums[R][V]{};
  for (int64_t i = 0; i < inner; ++i, left += left_row, right += right_row) {
    vf b[V];
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) b[v] = keep(load<vf>(right + v * LANES));
#pragma GCC unroll 16
    for (int64_t r = 0; r < R; ++r) {
      const vf a = splat(left[r]);
#pragma GCC unroll 4
      for (int64_t v = 0; v < V; ++v) sums[r][v] += a * b[v];
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; ++v) {
      float* const to = out + r * out_row + v * LANES;
      store(to, load<vf>(to) + sums[r][v]);
    }
  }
}

}  // namespace oekd::OEKD_ISA
