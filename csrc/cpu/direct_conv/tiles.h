// Sums of the direct convolution for outputs: out[k] = sum over c, tap of w[k, c, tap] * planes[c] shifted by the tap.
//
// A tile of K outputs by V vectors of pixels stays in registers. A vector of pixels that was loaded once is used K
// times, and a filter value V times.
#pragma once

#include "cpu/direct_conv/geometry.h"

namespace oekd::OEKD_ISA {

// The largest tiles. Their sums, the smaller of V and K operands, and one more operand fit the registers.
constexpr int64_t MOST_OUTPUTS = REGISTERS == 32 ? 9 : 4, MOST_VECTORS = REGISTERS == 32 ? 8 : 4;
constexpr bool fits_registers(int64_t outputs, int64_t vectors) {
  return outputs * vectors + (outputs < vectors ? outputs : vectors) + 1 <= REGISTERS;
}

// Outputs of the next tile, if `channels` are left. With 16 registers 3 or 4: numbers other than 1, 2 and 5 are divided
// into threes, or into fours followed by threes.
inline int64_t tile_outputs(int64_t channels) {
  if constexpr (REGISTERS == 32) return part_of(channels, MOST_OUTPUTS);
  if (channels == 5) return 3;
  return channels < 4 ? channels : channels % 3 ? 4 : 3;
}

// Vectors of the tiles of `channels` outputs.
inline int64_t tile_vectors(int64_t channels) {
  const int64_t outputs = REGISTERS == 32 ? tile_outputs(channels) : channels % 3 ? 4 : 3;
  int64_t vectors = 1;
  while (vectors < MOST_VECTORS && fits_registers(outputs, vectors + 1)) ++vectors;
  return vectors;
}

// Reorders w[k, c, tap], stored at weight[k * along_k + c * along_c + tap], to [tile][c][tap][k in the tile].
inline void pack(const Pass& pass, int64_t outputs, int64_t inputs, const float* weight, int64_t along_k,
                 int64_t along_c, float* packed) {
  for (int64_t first = 0; first < outputs;) {
    const int64_t block = tile_outputs(outputs - first);
    for (int64_t c = 0; c < inputs; ++c) {
      for (int64_t t = 0; t < pass.taps; ++t) {
        for (int64_t k = 0; k < block; ++k) *packed++ = weight[(first + k) * along_k + c * along_c + pass.weight[t]];
      }
    }
    first += block;
  }
}

// Computes V vectors of K outputs. The smaller of the filter values and the pixels is kept in registers with the sums.
template <int64_t V, int64_t K>
inline void tile(const Pass& pass, int64_t inputs, int64_t channel, const float* planes, const int64_t* at,
                 const float* packed, float* out, int64_t out_plane) {
  vf sums[K][V]{};
  for (int64_t c = 0; c < inputs; ++c, planes += channel) {
    for (int64_t t = 0; t < pass.taps; ++t, packed += K) {
      const float* const from = planes + pass.offset[t];
      if constexpr (K < V) {
        vf w[K];
        for (int k = 0; k < K; ++k) w[k] = keep(splat(packed[k]));
        for (int v = 0; v < V; ++v) {
          const vf x = keep(load<vf>(from + at[v]));
          for (int k = 0; k < K; ++k) sums[k][v] += x * w[k];
        }
      } else {
        vf x[V];
        for (int v = 0; v < V; ++v) x[v] = keep(load<vf>(from + at[v]));
        for (int k = 0; k < K; ++k) {
          const vf w = splat(packed[k]);
          for (int v = 0; v < V; ++v) sums[k][v] += x[v] * w;
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(out + k * out_plane + v * LANES, sums[k][v]);
  }
}

// Computes V vectors of all outputs. The pixels stay in the first-level cache while the filters are read in order.
template <int64_t V>
void tiles(const Pass& pass, const Planes& from, const float* planes, const int64_t* at, const float* packed,
           float* out, int64_t out_plane, int64_t channels) {
  for (int64_t first = 0; first < channels;) {
    const int64_t block = tile_outputs(channels - first);
    with_constant<MOST_OUTPUTS>(block, [&]<int64_t K>() {
      if constexpr (fits_registers(K, V)) {
        tile<V, K>(pass, from.channels, from.channel(), planes, at, packed, out, out_plane);
      }
    });
    packed += block * from.channels * pass.taps;
    out += block * out_plane;
    first += block;
  }
}

}  // namespace oekd::OEKD_ISA
