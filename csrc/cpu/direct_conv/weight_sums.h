// Sums of the direct convolution for weight gradients: dw[k, c, tap] = sum over pixels of dy[k] * x[c] shifted by the
// tap. K outputs by E weights (c, tap) stay in registers, each as a vector of partial sums.
#pragma once

#include "cpu/direct_conv/tiles.h"

namespace oekd::OEKD_ISA {

// The most outputs of sums: with 32 registers 3, for the 9 taps of an input; with 16 registers 4, for 3 taps.
constexpr int64_t MOST_WEIGHT_OUTPUTS = REGISTERS == 32 ? 3 : 4;

// The most outputs of sums for nine taps by rows: 9 sums, 3 rows of dy and 3 columns of x for each.
constexpr int64_t MOST_ROW_OUTPUTS = REGISTERS == 32 ? 2 : 1;

// Outputs of the next sums, if `channels` are left.
inline int64_t weight_outputs(int64_t channels) {
  return REGISTERS == 32 ? part_of(channels, MOST_WEIGHT_OUTPUTS) : tile_outputs(channels);
}

// Adds the sums of four vectors to the first `count` of `sums`.
#if defined(__AVX__)
// Returns 8 numbers with the same sum.
inline __m256 to_eight(vf v) {
#if OEKD_LANES == 16
  const Halves halves = bits<Halves>(v);
  return bits<__m256>(halves.low + halves.high);
#else
  return bits<__m256>(v);
#endif
}

inline void add_sums(const vf* v, float* const* sums, int64_t count) {
  const __m256 ab = _mm256_hadd_ps(to_eight(v[0]), to_eight(v[1]));
  const __m256 cd = _mm256_hadd_ps(to_eight(v[2]), to_eight(v[3]));
  const __m256 both = _mm256_hadd_ps(ab, cd);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
  float each[4];
  _mm_storeu_ps(each, four);
  for (int64_t i = 0; i < count; ++i) *sums[i] += each[i];
}
#else
inline void add_sums(const vf* v, float* const* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) *sums[i] += static_cast<float>(sum_across(v[i]));
}
#endif

// The pixels that a weight gradient is summed over.
struct Sweep {
  int64_t images;
  Cover cover;                // of one image, in x and in dy
  int64_t x_image, dy_image;  // distances between images
  int64_t dy_channel;         // distance between channels of dy
};

// Adds the sums of K outputs for E weights in a row to dweight.
template <int E, int64_t K>
inline void add_all(const vf (&sums)[K][E], float* dweight, int64_t along_k) {
  // Padded to a multiple of four.
  constexpr int64_t COUNT = K * E, FOURS = (COUNT + 3) / 4;
  vf flat[FOURS * 4]{};
  float* to[FOURS * 4]{};
  for (int k = 0; k < K; ++k) {
    for (int j = 0; j < E; ++j) {
      flat[k * E + j] = sums[k][j];
      to[k * E + j] = dweight + k * along_k + j;
    }
  }
  for (int64_t i = 0; i < FOURS; ++i) add_sums(flat + 4 * i, to + 4 * i, COUNT - 4 * i < 4 ? COUNT - 4 * i : 4);
}

// Computes the weight gradients of K outputs for E weights (c, tap); e[j] is where the input of weight j starts.
template <int E, int64_t K>
inline void weight_sums(const Sweep& s, const float* x, const int64_t* e, const float* dy, float* dweight,
                        int64_t along_k) {
  vf sums[K][E]{};
  const float *from[E], *grad[K];
  for (int j = 0; j < E; ++j) from[j] = x + e[j];
  for (int k = 0; k < K; ++k) grad[k] = dy + k * s.dy_channel;
  for (int64_t n = 0; n < s.images; ++n) {
    int64_t x_at = n * s.x_image, dy_at = n * s.dy_image;
    for (int64_t i = 0; i < s.cover.rows; ++i, x_at += s.cover.pitch, dy_at += s.cover.pitch) {
      for (int64_t v = 0; v < s.cover.across * LANES; v += LANES) {
        if constexpr (E <= K) {
          vf places[E];
          for (int j = 0; j < E; ++j) places[j] = keep(load<vf>(from[j] + x_at + v));
          for (int k = 0; k < K; ++k) {
            const vf g = load<vf>(grad[k] + dy_at + v);
            for (int j = 0; j < E; ++j) sums[k][j] += g * places[j];
          }
        } else {
          vf g[K];
          for (int k = 0; k < K; ++k) g[k] = keep(load<vf>(grad[k] + dy_at + v));
          for (int j = 0; j < E; ++j) {
            const vf place = keep(load<vf>(from[j] + x_at + v));
            for (int k = 0; k < K; ++k) sums[k][j] += g[k] * place;
          }
        }
      }
    }
  }
  add_all<E, K>(sums, dweight, along_k);
}

// Computes the weight gradients of K outputs for the nine taps of an input, with stride 1 and a cover of single rows.
// Each row of x is loaded once: it meets the rows of dy above, beside and below it, which stay in registers until the
// next row. The rows of dy outside of the image are 0. `x` is the first pixel of the input, without padding.
template <int64_t K>
inline void nine_weight_sums(const Sweep& s, const float* x, const float* dy, float* dweight, int64_t along_k) {
  vf sums[K][9]{};
  const int64_t pitch = s.cover.pitch;
  for (int64_t n = 0; n < s.images; ++n) {
    for (int64_t v = 0; v < s.cover.across * LANES; v += LANES) {
      const float* from = x + n * s.x_image + v;
      const float* grad = dy + n * s.dy_image + v;
      vf above[K], beside[K];
      for (int k = 0; k < K; ++k) {
        above[k] = vf{};
        beside[k] = load<vf>(grad + k * s.dy_channel);
      }
      for (int64_t i = 0; i < s.cover.rows; ++i, from += pitch) {
        grad += pitch;
        vf below[K];
        for (int k = 0; k < K; ++k) below[k] = keep(load<vf>(grad + k * s.dy_channel));
        for (int j = 0; j < 3; ++j) {
          const vf place = keep(load<vf>(from + j - 1));
          for (int k = 0; k < K; ++k) {
            sums[k][j] += below[k] * place;
            sums[k][3 + j] += beside[k] * place;
            sums[k][6 + j] += above[k] * place;
          }
        }
        for (int k = 0; k < K; ++k) {
          above[k] = beside[k];
          beside[k] = below[k];
        }
      }
    }
  }
  add_all<9, K>(sums, dweight, along_k);
}

template <int64_t K>
void weight_sums_of(const Sweep& s, const float* x, const int64_t* places, int64_t count, const float* dy,
                    float* dweight, int64_t along_k) {
  int64_t i = 0;
  if constexpr (REGISTERS == 32) {
    for (; i + 9 <= count; i += 9) weight_sums<9, K>(s, x, places + i, dy, dweight + i, along_k);
  }
  for (; i + 3 <= count; i += 3) weight_sums<3, K>(s, x, places + i, dy, dweight + i, along_k);
  for (; i < count; ++i) weight_sums<1, K>(s, x, places + i, dy, dweight + i, along_k);
}

}  // namespace oekd::OEKD_ISA
