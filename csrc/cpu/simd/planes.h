// Conversion of pixels with many channels to planes of one channel each, and back. Compiled like vec.h.
#pragma once

#include "cpu/simd/vec.h"

namespace oekd::OEKD_ISA {

#if defined(__AVX__)

namespace detail {

// Transposes an 8 x 8 matrix.
inline void transpose(__m256 (&r)[8]) {
  __m256 t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
    r[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
  }
}

// Returns the mask of the first n lanes.
inline __m256i first(int64_t n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes);
}

// Stores the first n of 8 floats. Masked stores are slow on some processors.
inline void store_first(float* to, __m256 v, int64_t n) {
  alignas(32) float all[8];
  _mm256_store_ps(all, v);
  switch (n) {
    case 1: __builtin_memcpy(to, all, 4); break;
    case 2: __builtin_memcpy(to, all, 8); break;
    case 3: __builtin_memcpy(to, all, 12); break;
    case 4: __builtin_memcpy(to, all, 16); break;
    case 5: __builtin_memcpy(to, all, 20); break;
    case 6: __builtin_memcpy(to, all, 24); break;
    case 7: __builtin_memcpy(to, all, 28); break;
    default: _mm256_storeu_ps(to, v);
  }
}

// A block of up to 8 channels. The last block overlaps the one before it, unless only FEW channels are left.
struct Block {
  int64_t begin, width;

  Block(int64_t from, int64_t channels)
      : begin(channels < 8 ? 0 : from + 8 <= channels ? from : channels - 8), width(channels < 8 ? channels : 8) {}
};

constexpr int64_t FEW = 2;

#if OEKD_LANES == 16

// Transposes four 4 x 4 matrices, each in one quarter of the vectors.
inline void transpose_quarters(__m512 (&r)[4]) {
  const auto low = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  const auto high = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  const __m512 a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
  const __m512 c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
  r[0] = low(a, c);
  r[1] = high(a, c);
  r[2] = low(b, d);
  r[3] = high(b, d);
}

// Loads two times four floats, `distance` floats apart.
inline __m256 load_fours(const float* p, int64_t distance) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + distance), 1);
}

// to_planes of 16 pixels with at least 4 channels, 4 at a time; the last four overlap those before. Quarter q of vector
// i holds pixel 4q + i, so that the transposition leaves the pixels in order.
inline void to_planes_16(const float* pixels, int64_t step, int64_t channels, float* planes, int64_t plane) {
  for (int64_t c = 0; c < channels; c += 4) {
    const int64_t begin = c + 4 <= channels ? c : channels - 4;
    __m512 r[4];
    for (int i = 0; i < 4; ++i) {
      const float* const from = pixels + i * step + begin;
      r[i] = _mm512_insertf32x8(_mm512_castps256_ps512(load_fours(from, 4 * step)),
                                load_fours(from + 8 * step, 4 * step), 1);
    }
    transpose_quarters(r);
    for (int i = 0; i < 4; ++i) _mm512_storeu_ps(planes + (begin + i) * plane, r[i]);
  }
}

// The inverse of to_planes_16.
inline void from_planes_16(const float* planes, int64_t plane, int64_t channels, float* pixels, int64_t step) {
  for (int64_t c = 0; c < channels; c += 4) {
    const int64_t begin = c + 4 <= channels ? c : channels - 4;
    __m512 r[4];
    for (int i = 0; i < 4; ++i) r[i] = _mm512_loadu_ps(planes + (begin + i) * plane);
    transpose_quarters(r);
    for (int i = 0; i < 4; ++i) {
      float* const to = pixels + i * step + begin;
      _mm_storeu_ps(to, _mm512_castps512_ps128(r[i]));
      _mm_storeu_ps(to + 4 * step, _mm512_extractf32x4_ps(r[i], 1));
      _mm_storeu_ps(to + 8 * step, _mm512_extractf32x4_ps(r[i], 2));
      _mm_storeu_ps(to + 12 * step, _mm512_extractf32x4_ps(r[i], 3));
    }
  }
}

#endif

}  // namespace detail

// Copies n pixels, `step` floats apart, to columns 0..n-1 of `channels` planes, `plane` floats apart.
inline void to_planes(const float* pixels, int64_t step, int64_t n, int64_t channels, float* planes, int64_t plane) {
#if OEKD_LANES == 16
  if (channels >= 4) {
    for (; n >= 16; n -= 16, pixels += 16 * step, planes += 16) {
      detail::to_planes_16(pixels, step, channels, planes, plane);
    }
  }
#endif
  for (int64_t c = 0; c < channels; c += 8) {
    if (c > 0 && channels - c <= detail::FEW) {
      for (; c < channels; ++c) {
        for (int64_t j = 0; j < n; ++j) planes[c * plane + j] = pixels[j * step + c];
      }
      break;
    }
    const detail::Block block(c, channels);
    const __m256i mask = detail::first(block.width);
    for (int64_t j = 0; j < n; j += 8) {
      const int64_t count = n - j < 8 ? n - j : 8;
      const float* const from = pixels + j * step + block.begin;
      float* const to = planes + block.begin * plane + j;
      __m256 r[8];
      if (count == 8 && block.width == 8) {
        for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * step);
        detail::transpose(r);
        for (int i = 0; i < 8; ++i) _mm256_storeu_ps(to + i * plane, r[i]);
      } else {
        for (int i = 0; i < 8; ++i) {
          r[i] = i < count ? _mm256_maskload_ps(from + i * step, mask) : _mm256_setzero_ps();
        }
        detail::transpose(r);
        for (int i = 0; i < 8; ++i) {
          if (i < block.width) detail::store_first(to + i * plane, r[i], count);
        }
      }
    }
  }
}

// The inverse of to_planes. Planes must be readable up to the next multiple of 8 columns.
inline void from_planes(const float* planes, int64_t plane, int64_t n, int64_t channels, float* pixels, int64_t step) {
#if OEKD_LANES == 16
  if (channels >= 4) {
    for (; n >= 16; n -= 16, pixels += 16 * step, planes += 16) {
      detail::from_planes_16(planes, plane, channels, pixels, step);
    }
  }
#endif
  for (int64_t c = 0; c < channels; c += 8) {
    if (c > 0 && channels - c <= detail::FEW) {
      for (; c < channels; ++c) {
        for (int64_t j = 0; j < n; ++j) pixels[j * step + c] = planes[c * plane + j];
      }
      break;
    }
    const detail::Block block(c, channels);
    for (int64_t j = 0; j < n; j += 8) {
      const int64_t count = n - j < 8 ? n - j : 8;
      const float* const from = planes + block.begin * plane + j;
      float* const to = pixels + j * step + block.begin;
      __m256 r[8];
      if (count == 8 && block.width == 8) {
        for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * plane);
        detail::transpose(r);
        for (int i = 0; i < 8; ++i) _mm256_storeu_ps(to + i * step, r[i]);
      } else {
        for (int i = 0; i < 8; ++i) {
          r[i] = i < block.width ? _mm256_loadu_ps(from + i * plane) : _mm256_setzero_ps();
        }
        detail::transpose(r);
        for (int i = 0; i < 8; ++i) {
          if (i < count) detail::store_first(to + i * step, r[i], block.width);
        }
      }
    }
  }
}

#else

inline void to_planes(const float* pixels, int64_t step, int64_t n, int64_t channels, float* planes, int64_t plane) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t c = 0; c < channels; ++c) planes[c * plane + j] = pixels[j * step + c];
  }
}

inline void from_planes(const float* planes, int64_t plane, int64_t n, int64_t channels, float* pixels, int64_t step) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t c = 0; c < channels; ++c) pixels[j * step + c] = planes[c * plane + j];
  }
}

#endif

}  // namespace oekd::OEKD_ISA
