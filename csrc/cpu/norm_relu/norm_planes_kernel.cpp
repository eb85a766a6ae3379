// Kernels of BatchNorm, residual and ReLU for maps of planes, [images, channels, plane], compiled once for each
// instruction set (setup.py). A plane has one channel, so its coefficients and sums stay in registers.
//
// In the structures of norm_relu.h, tables have one number a channel, `tile` is the size of a plane, and rows are
// images.
#include "cpu/norm_relu/elements.h"

#include <math.h>

namespace oekd::OEKD_ISA {
namespace {

// Calls run(c, i) for each plane of images [begin, end): its channel and the index of its first element.
template <class Run>
inline void each_plane(int64_t channels, int64_t plane, int64_t begin, int64_t end, const Run& run) {
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t c = 0; c < channels; ++c) run(c, (n * channels + c) * plane);
  }
}

// Calls step<part, whole>(i, count) for the vectors of n elements from i on; all but the last are whole. Neighbouring
// vectors have different parts, 0 and 1.
template <class Step>
inline void along(int64_t i, int64_t n, const Step& step) {
  const int64_t end = i + n;
  for (; i + 2 * LANES <= end; i += 2 * LANES) {
    step.template operator()<0, true>(i, LANES);
    step.template operator()<1, true>(i + LANES, LANES);
  }
  for (; i + LANES <= end; i += LANES) step.template operator()<0, true>(i, LANES);
  if (i < end) step.template operator()<0, false>(i, end - i);
}

// Loads a vector, or `count` elements followed by 0.
template <class T, bool WHOLE>
inline vf take(const void* map, int64_t i, int64_t count) {
  if constexpr (WHOLE) return load_map<T, vf>(map, i);
  return load_part(static_cast<const T*>(map) + i, count, 0.0f);
}

template <class T, bool WHOLE>
inline void put(void* map, int64_t i, int64_t count, vf x) {
  if constexpr (WHOLE) return store_map<T>(map, i, x);
  T part[LANES];
  store_map<T>(part, 0, x);
  __builtin_memcpy(static_cast<T*>(map) + i, part, count * sizeof(T));
}

// Sum of a channel: one number a lane in a table, which is loaded before a plane and stored after it. Two parts, so
// that an addition does not wait for the one before.
class ChannelSum {
 public:
  explicit ChannelSum(float* table) : table_(table), parts_{load<vf>(table), vf{}} {}
  template <int PART>
  void add(vf x) { parts_[PART] += x; }
  void finish() { store(table_, parts_[0] + parts_[1]); }

 private:
  float* table_;
  vf parts_[2];
};

inline double total(const float* table) { return sum_across(load<vf>(table)); }

// A number near the values of the first plane of a channel, so that deviations from it are accurate.
template <class T>
inline float near(const void* x, int64_t at, int64_t plane) {
  float sum = 0;
  for (int64_t k = 0; k < 4; ++k) sum += load_map<T, float>(x, at + k * plane / 4);
  return isfinite(sum) ? sum / 4 : 0;
}

// Sums the deviations from a number near the mean, and their squares, so that no accuracy is lost if the mean is large.
template <class T>
void statistics(const void* x, int64_t channels, int64_t plane, int64_t begin, int64_t end, float* scratch,
                double* mean, double* squares) {
  float *const sums = scratch, *const sums_of_squares = sums + channels * LANES;
  float* const shifts = sums_of_squares + channels * LANES;
  __builtin_memset(scratch, 0, 2 * channels * LANES * sizeof(float));
  for (int64_t c = 0; c < channels; ++c) shifts[c] = near<T>(x, (begin * channels + c) * plane, plane);
  each_plane(channels, plane, begin, end, [&](int64_t c, int64_t first) {
    ChannelSum sum(sums + c * LANES), sum_of_squares(sums_of_squares + c * LANES);
    const float shift = shifts[c];
    along(first, plane, [&]<int PART, bool WHOLE>(int64_t i, int64_t n) {
      vf d = take<T, WHOLE>(x, i, n) - shift;
      if constexpr (!WHOLE) d = first_lanes(n, d, 0.0f);
      sum.add<PART>(d);
      sum_of_squares.add<PART>(d * d);
    });
    sum.finish();
    sum_of_squares.finish();
  });
  const double count = static_cast<double>((end - begin) * plane);
  for (int64_t c = 0; c < channels; ++c) {
    const double s = total(sums + c * LANES), about_mean = total(sums_of_squares + c * LANES) - s * s / count;
    squares[c] = about_mean < 0 ? 0 : about_mean;
    mean[c] = shifts[c] + s / count;
  }
}

template <class T, bool RESIDUAL, bool RELU>
void forward_planes(const NormForward& f, int64_t begin, int64_t end) {
  each_plane(f.channels, f.tile, begin, end, [&](int64_t c, int64_t first) {
    const Normalise<float> normalised(f, c);
    along(first, f.tile, [&]<int, bool WHOLE>(int64_t i, int64_t n) {
      vf z = normalised(take<T, WHOLE>(f.x, i, n));
      if constexpr (RESIDUAL) z += take<T, WHOLE>(f.residual, i, n);
      if constexpr (RELU) z = relu<T>(z);
      put<T, WHOLE>(f.y, i, n, z);
    });
  });
}

template <class T>
void forward(const NormForward& f, int64_t begin, int64_t end) {
  if (!f.relu) return forward_planes<T, false, false>(f, begin, end);
  f.residual ? forward_planes<T, true, true>(f, begin, end) : forward_planes<T, false, true>(f, begin, end);
}

template <class T, Mask MASK, bool WHOLE>
inline vf masked(const void* dy, const void* y, int64_t i, int64_t n, vf x, const Normalise<float>& normalised) {
  const vf g = take<T, WHOLE>(dy, i, n);
  if constexpr (MASK == Mask::NONE) return g;
  if constexpr (MASK == Mask::FROM_X) return where_positive<T>(g, normalised(x));
  return where_positive<T>(g, take<T, WHOLE>(y, i, n));
}

template <class T, Mask MASK, bool WRITE>
void gradient_sums_of_planes(const NormBackward& b, int64_t begin, int64_t end, float* sums) {
  float* const sums_x = sums + b.channels * LANES;
  each_plane(b.channels, b.tile, begin, end, [&](int64_t c, int64_t first) {
    ChannelSum sum(sums + c * LANES), sum_x(sums_x + c * LANES);
    const Normalise<float> normalised(b, c);
    along(first, b.tile, [&]<int PART, bool WHOLE>(int64_t i, int64_t n) {
      const vf x = take<T, WHOLE>(b.x, i, n), g = masked<T, MASK, WHOLE>(b.dy, b.y, i, n, x, normalised);
      if constexpr (WRITE) put<T, WHOLE>(b.g, i, n, g);
      sum.add<PART>(g);
      sum_x.add<PART>(g * (x - normalised.mean));
    });
    sum.finish();
    sum_x.finish();
  });
}

template <class T>
void gradient_sums(const NormBackward& b, int64_t begin, int64_t end, float* scratch, double* g, double* g_x) {
  __builtin_memset(scratch, 0, 2 * b.channels * LANES * sizeof(float));
  switch (mask_of(b)) {
    case Mask::NONE: gradient_sums_of_planes<T, Mask::NONE, false>(b, begin, end, scratch); break;
    case Mask::FROM_X: gradient_sums_of_planes<T, Mask::FROM_X, false>(b, begin, end, scratch); break;
    case Mask::FROM_Y:
      b.g ? gradient_sums_of_planes<T, Mask::FROM_Y, true>(b, begin, end, scratch)
          : gradient_sums_of_planes<T, Mask::FROM_Y, false>(b, begin, end, scratch);
  }
  for (int64_t c = 0; c < b.channels; ++c) {
    g[c] = total(scratch + c * LANES);
    g_x[c] = total(scratch + (b.channels + c) * LANES);
  }
}

template <class T, Mask MASK>
void gradient_of_planes(const NormBackward& b, const void* dy, int64_t begin, int64_t end) {
  each_plane(b.channels, b.tile, begin, end, [&](int64_t c, int64_t first) {
    const Normalise<float> normalised(b, c);
    const float slope = b.slope[c], offset = b.offset[c];
    along(first, b.tile, [&]<int, bool WHOLE>(int64_t i, int64_t n) {
      const vf x = take<T, WHOLE>(b.x, i, n), g = masked<T, MASK, WHOLE>(dy, b.y, i, n, x, normalised);
      const vf along_x = (x - normalised.mean) * slope + offset;
      put<T, WHOLE>(b.dx, i, n, g * normalised.scale - along_x);
    });
  });
}

template <class T>
void gradient(const NormBackward& b, int64_t begin, int64_t end) {
  switch (mask_of(b)) {
    case Mask::NONE: return gradient_of_planes<T, Mask::NONE>(b, b.dy, begin, end);
    case Mask::FROM_X: return gradient_of_planes<T, Mask::FROM_X>(b, b.dy, begin, end);
    case Mask::FROM_Y:
      b.g ? gradient_of_planes<T, Mask::NONE>(b, b.g, begin, end)
          : gradient_of_planes<T, Mask::FROM_Y>(b, b.dy, begin, end);
  }
}

}  // namespace

#ifndef __AVX512BF16__
const NormReLUKernel norm_planes_fp32{LANES, statistics<float>, forward<float>, gradient_sums<float>, gradient<float>};
#endif
const NormReLUKernel norm_planes_bf16{LANES, statistics<BF16>, forward<BF16>, gradient_sums<BF16>, gradient<BF16>};

}  // namespace oekd::OEKD_ISA
