// Tiles of maps as rows of floats, each with its channels at the beginning of whole vectors. Compiled like vec.h.
#pragma once

#include "cpu/feature_kd/feature_kd.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/vec.h"

namespace oekd::OEKD_ISA {

inline float widened(float x) { return x; }
inline float widened(BF16 x) { return bits<float>(uint32_t{x.bits} << 16); }
inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, BF16* to) { to->bits = from_float(BF16{}, splat(x))[0]; }

// Index of the first element of a row of a map.
inline int64_t first_of(const FeatureMap& map, int64_t pixels, int64_t row) {
  return map.planar ? row / pixels * pixels * map.channels + row % pixels : row * map.channels;
}

// Calls use(channel, row, channels) for the squares of LANES rows and at most LANES channels of a tile of planes, and
// returns the first of the rows that are left.
template <class Use>
inline int64_t squares(int64_t channels, int64_t count, const Use& use) {
  int64_t row = 0;
  for (; row + LANES <= count; row += LANES) {
    for (int64_t c = 0; c < channels; c += LANES) use(c, row, channels - c < LANES ? channels - c : LANES);
  }
  return row;
}

// Copies `count` rows of a map, all of one image if it is planar, to rows of `distance` floats.
template <class T>
inline void load_tile(const FeatureMap& map, int64_t pixels, int64_t row, int64_t count, float* to, int64_t distance) {
  const T* const from = static_cast<const T*>(map.data) + first_of(map, pixels, row);
  const int64_t channels = map.channels;
  if (map.planar) {
    int64_t i = squares(channels, count, [&](int64_t c, int64_t first, int64_t n) {
      vf rows[LANES]{};
      for (int64_t k = 0; k < n; ++k) rows[k] = load_float(from + (c + k) * pixels + first);
      transpose(rows);
      for (int64_t k = 0; k < LANES; ++k) store(to + (first + k) * distance + c, rows[k]);
    });
    for (; i < count; ++i) {
      for (int64_t c = 0; c < channels; ++c) to[i * distance + c] = widened(from[c * pixels + i]);
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const T* const start = from + i * channels;
    float* const end = to + i * distance;
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) store(end + c, load_float(start + c));
    for (; c < channels; ++c) end[c] = widened(start[c]);
  }
}

// The inverse of load_tile.
template <class T>
inline void store_tile(const float* from, int64_t distance, const FeatureMap& map, int64_t pixels, int64_t row,
                       int64_t count) {
  T* const to = static_cast<T*>(map.data) + first_of(map, pixels, row);
  const int64_t channels = map.channels;
  if (map.planar) {
    int64_t i = squares(channels, count, [&](int64_t c, int64_t first, int64_t n) {
      vf rows[LANES];
      for (int64_t k = 0; k < LANES; ++k) rows[k] = load<vf>(from + (first + k) * distance + c);
      transpose(rows);
      for (int64_t k = 0; k < n; ++k) store_float(to + (c + k) * pixels + first, rows[k]);
    });
    for (; i < count; ++i) {
      for (int64_t c = 0; c < channels; ++c) narrow(from[i * distance + c], to + c * pixels + i);
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* const start = from + i * distance;
    T* const end = to + i * channels;
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) store_float(end + c, load<vf>(start + c));
    for (; c < channels; ++c) narrow(start[c], end + c);
  }
}

}  // namespace oekd::OEKD_ISA
