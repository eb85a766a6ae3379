// Kernels of the intermediate loss, compiled once for each instruction set (setup.py).
//
// Each tile of rows is copied to rows of floats and multiplied with the adapter; the gaps are multiplied with the
// adapter for the gradient of the map, and with the rows for that of the adapter. Vectors run along the channels of the
// result.
#include "cpu/feature_kd/feature_kd.h"

#include "cpu/feature_kd/tiles.h"
#include "cpu/simd/products.h"

namespace oekd::OEKD_ISA {
namespace {

constexpr int64_t LINE = 16;  // floats of a cache line
constexpr int64_t TILE = 64;

int64_t row_of(int64_t channels) { return round_up(channels, LANES); }

// The adapter for the loss, its bias, and the adapter for the gradient of the map.
struct Packed {
  Packed(int64_t channels, int64_t teacher_channels)
      : bias(round_up(channels * row_of(teacher_channels), LINE)),
        backward(bias + round_up(row_of(teacher_channels), LINE)),
        size(backward + round_up(teacher_channels * row_of(channels), LINE)) {}

  const int64_t bias, backward, size;
};

// Tiles of the student's rows, the gaps, the teacher's rows, and the gradient of the student's rows.
struct Scratch {
  Scratch(int64_t channels, int64_t teacher_channels)
      : gaps(round_up(TILE * row_of(channels), LINE)),
        teacher(gaps + round_up(TILE * row_of(teacher_channels), LINE)),
        gradient(teacher + round_up(TILE * row_of(teacher_channels), LINE)),
        size(gradient + round_up(TILE * row_of(channels), LINE)) {}

  const int64_t gaps, teacher, gradient, size;
};

int64_t packed_size(int64_t channels, int64_t teacher_channels) { return Packed(channels, teacher_channels).size; }
int64_t scratch_size(int64_t channels, int64_t teacher_channels) { return Scratch(channels, teacher_channels).size; }
int64_t sums_size(int64_t channels, int64_t teacher_channels) { return (channels + 1) * row_of(teacher_channels); }

// Writes the right factor of `product`: for each block of columns, V vectors for each of the `inner` rows. Columns that
// fill the last vector are 0.
template <class Element>
void pack_factor(int64_t inner, int64_t columns, const Element& element, float* to) {
  column_blocks(row_of(columns) / LANES, [&]<int64_t V>(int64_t first) {
    for (int64_t i = 0; i < inner; ++i, to += V * LANES) {
      for (int64_t k = 0; k < V * LANES; ++k) {
        const int64_t column = first * LANES + k;
        to[k] = column < columns ? element(i, column) : 0.0f;
      }
    }
  });
}

void pack(int64_t channels, int64_t teacher_channels, const float* weight, const float* bias, double factor,
          float* packed) {
  const Packed parts(channels, teacher_channels);
  pack_factor(channels, teacher_channels, [&](int64_t c, int64_t k) { return weight[k * channels + c]; }, packed);
  pack_factor(1, teacher_channels, [&](int64_t, int64_t k) { return bias[k]; }, packed + parts.bias);
  pack_factor(
      teacher_channels, channels,
      [&](int64_t k, int64_t c) { return static_cast<float>(weight[k * channels + c] * factor); },
      packed + parts.backward);
}

// Writes `rows` rows of left @ right, with a right factor that pack_factor wrote.
void multiply(const float* left, int64_t left_row, int64_t rows, int64_t inner, const float* right, int64_t columns,
              float* out, int64_t out_row) {
  column_blocks(row_of(columns) / LANES, [&]<int64_t V>(int64_t column) {
    row_blocks<V>(rows, [&]<int64_t R>(int64_t row) {
      product<R, V>(left + row * left_row, left_row, right + column * LANES * inner, inner,
                    out + row * out_row + column * LANES, out_row);
    });
  });
}

// Adds the sums of gap f^T, transposed.
void add_weight_sums(const float* student, int64_t student_row, int64_t channels, const float* gaps, int64_t gap_row,
                     int64_t rows, float* sums) {
  column_blocks(gap_row / LANES, [&]<int64_t V>(int64_t column) {
    row_blocks<V>(channels, [&]<int64_t R>(int64_t row) {
      add_transposed_product<R, V>(student + row, student_row, gaps + column * LANES, gap_row, rows,
                                   sums + row * gap_row + column * LANES, gap_row);
    });
  });
}

// Turns rows of A f into gaps, adds them to `sums`, and returns the sum of their squares.
double finish_gaps(const float* bias, const float* teacher, int64_t channels, int64_t rows, float* gaps, float* sums) {
  const int64_t distance = row_of(channels);
  double squares = 0;
  column_blocks(distance / LANES, [&]<int64_t V>(int64_t first) {
    vf b[V], sum[V]{}, square[V]{};
    for (int64_t v = 0; v < V; ++v) b[v] = load<vf>(bias + (first + v) * LANES);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = i * distance + first * LANES;
#pragma GCC unroll 4
      for (int64_t v = 0; v < V; ++v) {
        const vf gap = load<vf>(gaps + at + v * LANES) + b[v] - load<vf>(teacher + at + v * LANES);
        store(gaps + at + v * LANES, gap);
        sum[v] += gap;
        square[v] += gap * gap;
      }
    }
    for (int64_t v = 0; v < V; ++v) {
      // Columns that fill the last vector are NaN if the student's map has an infinite element.
      const int64_t filled = channels - (first + v) * LANES;
      squares += sum_across(filled < LANES ? first_lanes(filled, square[v], 0.0f) : square[v]);
      float* const to = sums + (first + v) * LANES;
      store(to, load<vf>(to) + sum[v]);
    }
  });
  return squares;
}

template <class T>
double run(const FeatureProblem& p, int64_t begin, int64_t end, float* sums, float* scratch) {
  const int64_t channels = p.student.channels, teacher_channels = p.teacher.channels;
  const int64_t gap_row = row_of(teacher_channels), student_row = row_of(channels);
  const Packed packed(channels, teacher_channels);
  const Scratch parts(channels, teacher_channels);
  float *const student = scratch, *const gaps = scratch + parts.gaps;
  float *const teacher = scratch + parts.teacher, *const gradient = scratch + parts.gradient;
  __builtin_memset(sums, 0, sums_size(channels, teacher_channels) * sizeof(float));
  __builtin_memset(teacher, 0, TILE * gap_row * sizeof(float));  // the columns that fill the last vector stay 0
  const bool planar = p.student.planar || p.teacher.planar;
  double squares = 0;
  for (int64_t row = begin; row < end;) {
    int64_t count = end - row < TILE ? end - row : TILE;
    if (planar && p.pixels - row % p.pixels < count) count = p.pixels - row % p.pixels;
    load_tile<T>(p.student, p.pixels, row, count, student, student_row);
    load_tile<T>(p.teacher, p.pixels, row, count, teacher, gap_row);
    multiply(student, student_row, count, channels, p.packed, teacher_channels, gaps, gap_row);
    squares += finish_gaps(p.packed + packed.bias, teacher, teacher_channels, count, gaps, sums + channels * gap_row);
    if (p.gradient.data != nullptr) {
      add_weight_sums(student, student_row, channels, gaps, gap_row, count, sums);
      multiply(gaps, gap_row, count, teacher_channels, p.packed + packed.backward, channels, gradient, student_row);
      store_tile<T>(gradient, student_row, p.gradient, p.pixels, row, count);
    }
    row += count;
  }
  return squares;
}

}  // namespace

const FeatureKernel feature_kd_fp32{TILE, packed_size, sums_size, scratch_size, pack, run<float>};
const FeatureKernel feature_kd_bf16{TILE, packed_size, sums_size, scratch_size, pack, run<BF16>};

}  // namespace oekd::OEKD_ISA
