// Kernels of BatchNorm, residual and ReLU for maps of rows, compiled once for each instruction set (setup.py).
//
// The number of channels C is usually not a multiple of LANES, but LANES rows are always C whole vectors. The kernels
// therefore process tiles of rows, where the number of rows is a multiple of LANES. Values of a channel (coefficients
// and running sums) are kept in tables of the size of a tile: position p of a tile belongs to channel p % C.
#include "cpu/norm_relu/elements.h"

#include <math.h>

namespace oekd::OEKD_ISA {
namespace {

// Rows that come from memory are read one tile after the other, because processors prefetch sequential reads. Of rows
// in the cache, CACHED tiles are processed together, so that each table entry is loaded and stored once for all.
constexpr int CACHED = 4;

// Calls step<W, N>(i, p) for the vectors W at i + k * tile, k < N, which are at position p of their tiles. W is float
// for the last floats, which do not fill a vector.
template <int TOGETHER, class Step>
inline void sweep(int64_t begin, int64_t end, int64_t tile, const Step& step) {
  int64_t i = begin;
  for (; i + TOGETHER * tile <= end; i += TOGETHER * tile) {
    for (int64_t p = 0; p < tile; p += LANES) step.template operator()<vf, TOGETHER>(i + p, p);
  }
  for (; i < end; i += tile) {
    const int64_t n = end - i < tile ? end - i : tile;
    int64_t p = 0;
    for (; p + LANES <= n; p += LANES) step.template operator()<vf, 1>(i + p, p);
    for (; p < n; ++p) step.template operator()<float, 1>(i + p, p);
  }
}

inline void clear(float* table, int64_t tile) {
  for (int64_t p = 0; p < tile; ++p) table[p] = 0;
}

// Adds the positions of each channel.
inline void fold(const float* table, int64_t channels, int64_t tile, double* sums) {
  for (int64_t c = 0; c < channels; ++c) sums[c] = table[c];
  for (int64_t row = channels; row < tile; row += channels) {
    for (int64_t c = 0; c < channels; ++c) sums[c] += table[row + c];
  }
}

// Reads the rows twice; they stay in the cache in between. Squared deviations from the mean do not lose accuracy if the
// mean is large. The first mean comes from fp32 sums; the mean deviation from it then corrects its rounding.
template <class T>
void statistics(const void* x, int64_t channels, int64_t tile, int64_t begin, int64_t end, float* scratch,
                double* mean, double* squares) {
  const double rows = static_cast<double>(end - begin);
  float *const sums = scratch, *const sums_of_squares = sums + tile, *const shift = sums_of_squares + tile;

  clear(sums, tile);
  sweep<1>(begin * channels, end * channels, tile, [=]<class W, int>(int64_t i, int64_t p) {
    store(sums + p, load<W>(sums + p) + load_map<T, W>(x, i));
  });
  fold(sums, channels, tile, mean);
  for (int64_t c = 0; c < channels; ++c) shift[c] = static_cast<float>(mean[c] / rows);
  for (int64_t p = channels; p < tile; ++p) shift[p] = shift[p - channels];

  clear(sums, 2 * tile);
  sweep<CACHED>(begin * channels, end * channels, tile, [=]<class W, int N>(int64_t i, int64_t p) {
    const W m = load<W>(shift + p);
    W s{}, q{};
    for (int k = 0; k < N; ++k) {
      const W d = load_map<T, W>(x, i + k * tile) - m;
      s += d;
      q += d * d;
    }
    store(sums + p, load<W>(sums + p) + s);
    store(sums_of_squares + p, load<W>(sums_of_squares + p) + q);
  });
  fold(sums, channels, tile, mean);
  fold(sums_of_squares, channels, tile, squares);
  for (int64_t c = 0; c < channels; ++c) {
    const double s = mean[c], about_mean = squares[c] - s * s / rows;
    squares[c] = about_mean < 0 ? 0 : about_mean;
    mean[c] = isfinite(shift[c]) ? shift[c] + s / rows : shift[c];  // keeps an infinite mean
  }
}

template <class T, bool RESIDUAL, bool RELU>
void forward_rows(const NormForward& f, int64_t begin, int64_t end) {
  sweep<1>(begin * f.channels, end * f.channels, f.tile, [=]<class W, int>(int64_t i, int64_t p) {
    W z = Normalise<W>(f, p)(load_map<T, W>(f.x, i));
    if constexpr (RESIDUAL) z += load_map<T, W>(f.residual, i);
    if constexpr (RELU) z = relu<T>(z);
    store_map<T>(f.y, i, z);
  });
}

template <class T>
void forward(const NormForward& f, int64_t begin, int64_t end) {
  if (!f.relu) return forward_rows<T, false, false>(f, begin, end);
  f.residual ? forward_rows<T, true, true>(f, begin, end) : forward_rows<T, false, true>(f, begin, end);
}

template <class T, Mask MASK, class W>
inline W masked(W dy, const void* y, int64_t i, W x, const Normalise<W>& normalised) {
  if constexpr (MASK == Mask::NONE) return dy;
  if constexpr (MASK == Mask::FROM_X) return where_positive<T>(dy, normalised(x));
  return where_positive<T>(dy, load_map<T, W>(y, i));
}

template <class T, Mask MASK, bool WRITE>
void gradient_sums_of_rows(const NormBackward& b, int64_t begin, int64_t end, float* sums) {
  float* const sums_x = sums + b.tile;
  sweep<1>(begin * b.channels, end * b.channels, b.tile, [=]<class W, int>(int64_t i, int64_t p) {
    const Normalise<W> normalised(b, p);
    const W x = load_map<T, W>(b.x, i);
    const W g = masked<T, MASK>(load_map<T, W>(b.dy, i), b.y, i, x, normalised);
    if constexpr (WRITE) store_map<T>(b.g, i, g);
    store(sums + p, load<W>(sums + p) + g);
    store(sums_x + p, load<W>(sums_x + p) + g * (x - normalised.mean));
  });
}

template <class T>
void gradient_sums(const NormBackward& b, int64_t begin, int64_t end, float* scratch, double* g, double* g_x) {
  clear(scratch, 2 * b.tile);
  switch (mask_of(b)) {
    case Mask::NONE: gradient_sums_of_rows<T, Mask::NONE, false>(b, begin, end, scratch); break;
    case Mask::FROM_X: gradient_sums_of_rows<T, Mask::FROM_X, false>(b, begin, end, scratch); break;
    case Mask::FROM_Y:
      b.g ? gradient_sums_of_rows<T, Mask::FROM_Y, true>(b, begin, end, scratch)
          : gradient_sums_of_rows<T, Mask::FROM_Y, false>(b, begin, end, scratch);
  }
  fold(scratch, b.channels, b.tile, g);
  fold(scratch + b.tile, b.channels, b.tile, g_x);
}

template <class T, Mask MASK>
void gradient_of_rows(const NormBackward& b, const void* dy, int64_t begin, int64_t end) {
  sweep<1>(begin * b.channels, end * b.channels, b.tile, [=]<class W, int>(int64_t i, int64_t p) {
    const Normalise<W> normalised(b, p);
    const W x = load_map<T, W>(b.x, i);
    const W g = masked<T, MASK>(load_map<T, W>(dy, i), b.y, i, x, normalised);
    const W along = (x - normalised.mean) * load<W>(b.slope + p) + load<W>(b.offset + p);
    store_map<T>(b.dx, i, g * normalised.scale - along);
  });
}

template <class T>
void gradient(const NormBackward& b, int64_t begin, int64_t end) {
  switch (mask_of(b)) {
    case Mask::NONE: return gradient_of_rows<T, Mask::NONE>(b, b.dy, begin, end);
    case Mask::FROM_X: return gradient_of_rows<T, Mask::FROM_X>(b, b.dy, begin, end);
    case Mask::FROM_Y:
      b.g ? gradient_of_rows<T, Mask::NONE>(b, b.g, begin, end)
          : gradient_of_rows<T, Mask::FROM_Y>(b, b.dy, begin, end);
  }
}

}  // namespace

#ifndef __AVX512BF16__
const NormReLUKernel norm_relu_fp32{LANES, statistics<float>, forward<float>, gradient_sums<float>, gradient<float>};
#endif
const NormReLUKernel norm_relu_bf16{LANES, statistics<BF16>, forward<BF16>, gradient_sums<BF16>, gradient<BF16>};

}  // namespace oekd::OEKD_ISA
