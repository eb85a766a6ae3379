// Kernels of BatchNorm, residual and ReLU, compiled once for each instruction set (setup.py).
//
// The number of channels C is usually not a multiple of LANES, but LANES rows are always C whole vectors. The kernels
// therefore process tiles of rows, where the number of rows is a multiple of LANES. Values of a channel (coefficients
// and running sums) are kept in tables of the size of a tile: position p of a tile belongs to channel p % C.
#include "cpu/norm_relu/norm_relu.h"
#include "cpu/simd/vec.h"

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

template <class W>
inline W relu(W z) {
  return z < W{} ? W{} : z;  // keeps NaN
}

// Reads the rows twice; they stay in the cache in between. Squared deviations from the mean do not lose accuracy if the
// mean is large. The first mean comes from fp32 sums; the mean deviation from it then corrects its rounding.
void statistics(const float* x, int64_t channels, int64_t tile, int64_t begin, int64_t end, float* scratch,
                double* mean, double* squares) {
  const double rows = static_cast<double>(end - begin);
  float *const sums = scratch, *const sums_of_squares = sums + tile, *const shift = sums_of_squares + tile;

  clear(sums, tile);
  sweep<1>(begin * channels, end * channels, tile, [=]<class W, int>(int64_t i, int64_t p) {
    store(sums + p, load<W>(sums + p) + load<W>(x + i));
  });
  fold(sums, channels, tile, mean);
  for (int64_t c = 0; c < channels; ++c) shift[c] = static_cast<float>(mean[c] / rows);
  for (int64_t p = channels; p < tile; ++p) shift[p] = shift[p - channels];

  clear(sums, 2 * tile);
  sweep<CACHED>(begin * channels, end * channels, tile, [=]<class W, int N>(int64_t i, int64_t p) {
    const W m = load<W>(shift + p);
    W s{}, q{};
    for (int k = 0; k < N; ++k) {
      const W d = load<W>(x + i + k * tile) - m;
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

// Forward and backward share this function, so that backward masks exactly the outputs that forward set to 0.
template <class W>
struct Normalise {
  template <class Tables>
  Normalise(const Tables& t, int64_t p)
      : mean(load<W>(t.mean + p)), scale(load<W>(t.scale + p)), bias(load<W>(t.bias + p)) {}
  W operator()(W x) const { return (x - mean) * scale + bias; }

  const W mean, scale, bias;
};

template <bool RESIDUAL>
void forward_rows(const NormForward& f, int64_t begin, int64_t end) {
  sweep<1>(begin * f.channels, end * f.channels, f.tile, [=]<class W, int>(int64_t i, int64_t p) {
    W z = Normalise<W>(f, p)(load<W>(f.x + i));
    if constexpr (RESIDUAL) z += load<W>(f.residual + i);
    store(f.y + i, relu(z));
  });
}

void forward(const NormForward& f, int64_t begin, int64_t end) {
  f.residual ? forward_rows<true>(f, begin, end) : forward_rows<false>(f, begin, end);
}

// Source of the mask of positive outputs. NONE: dy is masked already.
enum class Mask { NONE, FROM_X, FROM_Y };

template <Mask MASK, class W>
inline W masked(W dy, const float* y, int64_t i, W x, const Normalise<W>& normalised) {
  if constexpr (MASK == Mask::NONE) return dy;
  W z;
  if constexpr (MASK == Mask::FROM_X) {
    z = normalised(x);
  } else {
    z = load<W>(y + i);
  }
  return z <= W{} ? W{} : dy;  // dy passes where the output is NaN
}

template <Mask MASK, bool WRITE>
void gradient_sums_of_rows(const NormBackward& b, int64_t begin, int64_t end, float* sums) {
  float* const sums_x = sums + b.tile;
  sweep<1>(begin * b.channels, end * b.channels, b.tile, [=]<class W, int>(int64_t i, int64_t p) {
    const Normalise<W> normalised(b, p);
    const W x = load<W>(b.x + i);
    const W g = masked<MASK>(load<W>(b.dy + i), b.y, i, x, normalised);
    if constexpr (WRITE) store(b.g + i, g);
    store(sums + p, load<W>(sums + p) + g);
    store(sums_x + p, load<W>(sums_x + p) + g * (x - normalised.mean));
  });
}

void gradient_sums(const NormBackward& b, int64_t begin, int64_t end, float* scratch, double* g, double* g_x) {
  clear(scratch, 2 * b.tile);
  if (!b.y) {
    gradient_sums_of_rows<Mask::FROM_X, false>(b, begin, end, scratch);
  } else if (b.g) {
    gradient_sums_of_rows<Mask::FROM_Y, true>(b, begin, end, scratch);
  } else {
    gradient_sums_of_rows<Mask::FROM_Y, false>(b, begin, end, scratch);
  }
  fold(scratch, b.channels, b.tile, g);
  fold(scratch + b.tile, b.channels, b.tile, g_x);
}

template <Mask MASK>
void gradient_of_rows(const NormBackward& b, const float* dy, int64_t begin, int64_t end) {
  sweep<1>(begin * b.channels, end * b.channels, b.tile, [=]<class W, int>(int64_t i, int64_t p) {
    const Normalise<W> normalised(b, p);
    const W x = load<W>(b.x + i);
    const W g = masked<MASK>(load<W>(dy + i), b.y, i, x, normalised);
    const W along = (x - normalised.mean) * load<W>(b.slope + p) + load<W>(b.offset + p);
    store(b.dx + i, g * normalised.scale - along);
  });
}

void gradient(const NormBackward& b, int64_t begin, int64_t end) {
  if (!b.y) return gradient_of_rows<Mask::FROM_X>(b, b.dy, begin, end);
  b.g ? gradient_of_rows<Mask::NONE>(b, b.g, begin, end) : gradient_of_rows<Mask::FROM_Y>(b, b.dy, begin, end);
}

}  // namespace

const NormReLUKernel norm_relu_kernel{LANES, statistics, forward, gradient_sums, gradient};

}  // namespace oekd::OEKD_ISA
