// Kernels of Winograd's convolution, compiled once for each instruction set (setup.py).
//
// Tiles are processed in blocks, so that their transforms stay in the second-level cache. Each block is transformed,
// multiplied for each frequency with the transformed filter, and transformed back.
#include "cpu/simd/products.h"
#include "cpu/winograd/transforms.h"

namespace oekd::OEKD_ISA {
namespace {

constexpr int64_t LINE = 16;  // floats of a cache line

// Tiles of a block: a multiple of the tiles in a row of small maps.
constexpr int64_t BLOCK_TILES = 16;

int64_t row_of(int64_t channels) { return round_up(channels, LANES); }

// Distance between the matrices of two frequencies. It is no power of two, for which caches hold few lines.
int64_t frequency_of(int64_t rows, int64_t channels) { return round_up(rows * row_of(channels), LINE) + LINE; }

int64_t zeros_size(const WinogradShape& s) { return round_up(s.width * s.in_channels, LINE); }

Transformed matrices(float* data, int64_t rows, int64_t channels) {
  return {data, frequency_of(rows, channels), row_of(channels)};
}

int64_t filter_frequency(const WinogradShape& s) { return frequency_of(s.in_channels, s.out_channels); }

int64_t filter_size(const WinogradShape& s) { return FREQUENCIES * filter_frequency(s); }

int64_t scratch_size(const WinogradShape& s) {
  const int64_t n = BLOCK_TILES;
  return zeros_size(s) + FREQUENCIES * (frequency_of(n, s.in_channels) + frequency_of(n, s.out_channels));
}

int64_t sums_size(const WinogradShape& s) { return 9 * s.in_channels * row_of(s.out_channels); }

int64_t weight_scratch_size(const WinogradShape& s) {
  const int64_t n = BLOCK_TILES;
  return zeros_size(s) + FREQUENCIES * (frequency_of(n, s.in_channels) + frequency_of(n, s.out_channels) +
                                        frequency_of(s.in_channels, s.out_channels));
}

inline void clear(float* p, int64_t n) { __builtin_memset(p, 0, n * sizeof(float)); }

// Writes V vectors of outputs of the transformed filter, beginning at output `first`, for one input.
template <int64_t V>
void transform_filters(const Filter3x3& filter, int64_t outputs, int64_t first, float* to, int64_t matrix) {
  for (int64_t v = 0; v < V; ++v, first += LANES) {
    const int64_t count = outputs - first < LANES ? outputs - first : LANES;
    float taps[9][LANES] = {};
    for (int64_t k = 0; k < count; ++k) {
      const float* const from = filter.data + (first + k) * filter.along_output;
      for (int64_t t = 0; t < 9; ++t) taps[t][k] = from[t / 3 * filter.along_row + t % 3 * filter.along_column];
    }
    vf columns[3][4];
    for (int64_t x = 0; x < 3; ++x) {
      filter_line(load<vf>(taps[x]), load<vf>(taps[3 + x]), load<vf>(taps[6 + x]), columns[x]);
    }
    for (int64_t y = 0; y < 4; ++y) {
      vf line[4];
      filter_line(columns[0][y], columns[1][y], columns[2][y], line);
      for (int64_t x = 0; x < 4; ++x) store(to + (4 * y + x) * matrix + v * LANES, line[x]);
    }
  }
}

// The transformed filter has, for each frequency and block of columns, a row of outputs for each input.
void transform_filter(const WinogradShape& s, const Filter3x3& filter, float* transformed) {
  const int64_t matrix = filter_frequency(s);
  column_blocks(row_of(s.out_channels) / LANES, [&]<int64_t V>(int64_t first) {
    Filter3x3 of_input = filter;
    for (int64_t c = 0; c < s.in_channels; ++c, of_input.data += filter.along_input) {
      transform_filters<V>(of_input, s.out_channels, first * LANES,
                           transformed + (first * s.in_channels + c * V) * LANES, matrix);
    }
  });
}

void convolve(const WinogradShape& s, int64_t images, const float* x, const float* transformed, float* y,
              float* scratch) {
  const int64_t most = BLOCK_TILES, total = images * s.tiles(), outputs = row_of(s.out_channels);
  float* const zeros = scratch;
  clear(zeros, zeros_size(s));
  const Transformed in = matrices(zeros + zeros_size(s), most, s.in_channels);
  const Transformed out = matrices(in.data + FREQUENCIES * in.frequency, most, s.out_channels);
  for (int64_t first = 0; first < total; first += most) {
    const int64_t count = total - first < most ? total - first : most;
    runs(s, first, count, [&](const Run& run) { transform_inputs(s, s.in_channels, run, x, zeros, in); });
    for (int64_t f = 0; f < FREQUENCIES; ++f) {
      const float* const left = in.data + f * in.frequency;
      const float* const right = transformed + f * filter_frequency(s);
      float* const to = out.data + f * out.frequency;
      column_blocks(outputs / LANES, [&]<int64_t V>(int64_t column) {
        row_blocks<V>(count, [&]<int64_t R>(int64_t row) {
          product<R, V>(left + row * in.row, in.row, right + column * LANES * s.in_channels, s.in_channels,
                        to + row * out.row + column * LANES, out.row);
        });
      });
    }
    runs(s, first, count, [&](const Run& run) { transform_outputs(s, run, out, y); });
  }
}

void weight_gradient(const WinogradShape& s, int64_t images, const float* x, const float* dy, float* sums,
                     float* scratch) {
  const int64_t most = BLOCK_TILES, total = images * s.tiles(), outputs = row_of(s.out_channels);
  float* const zeros = scratch;
  clear(zeros, zeros_size(s));
  const Transformed in = matrices(zeros + zeros_size(s), most, s.in_channels);
  const Transformed grad = matrices(in.data + FREQUENCIES * in.frequency, most, s.out_channels);
  const Transformed products = matrices(grad.data + FREQUENCIES * grad.frequency, s.in_channels, s.out_channels);
  // Rows of dy end with columns that are no channels. Their sums are not used.
  clear(grad.data, FREQUENCIES * (grad.frequency + products.frequency));
  for (int64_t first = 0; first < total; first += most) {
    const int64_t count = total - first < most ? total - first : most;
    runs(s, first, count, [&](const Run& run) {
      transform_inputs(s, s.in_channels, run, x, zeros, in);
      transform_gradients(s, run, dy, grad);
    });
    for (int64_t f = 0; f < FREQUENCIES; ++f) {
      const float* const left = in.data + f * in.frequency;
      const float* const right = grad.data + f * grad.frequency;
      float* const to = products.data + f * products.frequency;
      column_blocks(outputs / LANES, [&]<int64_t V>(int64_t column) {
        row_blocks<V>(s.in_channels, [&]<int64_t R>(int64_t row) {
          add_transposed_product<R, V>(left + row, in.row, right + column * LANES, grad.row, count,
                                       to + row * products.row + column * LANES, products.row);
        });
      });
    }
  }
  for (int64_t c = 0; c < s.in_channels; ++c) {
    for (int64_t k = 0; k < outputs; k += LANES) {
      const float* const from = products.data + c * products.row + k;
      const auto at = [&](int64_t f) { return load<vf>(from + f * products.frequency); };
      vf columns[4][3];
      for (int64_t j = 0; j < 4; ++j) filter_gradient_line(at(j), at(4 + j), at(8 + j), at(12 + j), columns[j]);
      for (int64_t i = 0; i < 3; ++i) {
        vf line[3];
        filter_gradient_line(columns[0][i], columns[1][i], columns[2][i], columns[3][i], line);
        for (int64_t j = 0; j < 3; ++j) store(sums + ((3 * i + j) * s.in_channels + c) * outputs + k, line[j]);
      }
    }
  }
}

}  // namespace

const WinogradKernel winograd_kernel{LANES,    filter_size, scratch_size, sums_size, weight_scratch_size, transform_filter,
                              convolve, weight_gradient};

}  // namespace oekd::OEKD_ISA
