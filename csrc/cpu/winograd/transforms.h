// Transforms of Winograd's F(2x2, 3x3) (Lavin and Gray 2016, section 4.1) and of its gradient with respect to the filter.
//
// With d a tile of 4 x 4 inputs, g the filter and y the tile of 2 x 2 outputs,
//
//   y  = A^T ((G g G^T) * (B^T d B)) A        * : element by element
//   dg = G^T ((A dy A^T) * (B^T d B)) G
//
// The last rows of A and B^T have the opposite sign here, which saves negations; their product stays the same.
// A transformed tile has 16 values, `frequencies`, each a row of channels in a matrix of its own.
#pragma once

#include "cpu/simd/blocks.h"
#include "cpu/winograd/winograd.h"

namespace oekd::OEKD_ISA {

constexpr int64_t FREQUENCIES = 16;

// Matrices of transformed tiles, one for each frequency: a row for each tile, of channels in whole vectors.
struct Transformed {
  float* data;
  int64_t frequency, row;  // distances between matrices and between rows
};

// Tiles in one row of an image: `count` tiles from (row, column), of which the first is tile `at` of the block.
struct Run {
  int64_t image, row, column, count, at;
};

// Calls use(run) for the tiles [first, first + count) of all images.
template <class Use>
inline void runs(const WinogradShape& s, int64_t first, int64_t count, const Use& use) {
  const int64_t wide = s.tiles_wide(), tiles = s.tiles();
  for (int64_t at = 0; at < count;) {
    const int64_t tile = first + at, image = tile / tiles, row = tile % tiles / wide, column = tile % wide;
    const int64_t n = wide - column < count - at ? wide - column : count - at;
    use(Run{image, row, column, n, at});
    at += n;
  }
}

// Calls use(begin) for the vectors that cover `channels` channels; the last may overlap the one before.
template <class Use>
inline void channel_vectors(int64_t channels, const Use& use) {
  int64_t c = 0;
  for (; c + LANES <= channels; c += LANES) use(c);
  if (c < channels) use(channels - LANES);
}

// One column of a tile, transformed along it.
struct Column {
  vf v[4];
};

inline Column input_column(vf a, vf b, vf c, vf d) { return {a - c, b + c, c - b, d - b}; }

// Writes B^T d B of the tiles of a run. `zeros` holds a row of zeros.
inline void transform_inputs(const WinogradShape& s, int64_t channels, const Run& run, const float* images,
                             const float* zeros, const Transformed& to) {
  const float* rows[4];
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t row = 2 * run.row + i - 1;
    const bool inside = row >= 0 && row < s.height;
    rows[i] = inside ? images + (run.image * s.height + row) * s.width * channels : zeros;
  }
  channel_vectors(channels, [&](int64_t c) {
    const auto column = [&](int64_t x) {
      if (x < 0 || x >= s.width) return Column{};
      const int64_t at = x * channels + c;
      return input_column(load<vf>(rows[0] + at), load<vf>(rows[1] + at), load<vf>(rows[2] + at),
                          load<vf>(rows[3] + at));
    };
    Column p = column(2 * run.column - 1), q = column(2 * run.column);
    float* out = to.data + run.at * to.row + c;
    for (int64_t t = 0; t < run.count; ++t, out += to.row) {
      const int64_t x = 2 * (run.column + t) + 1;
      const Column r = column(x), u = column(x + 1);
#pragma GCC unroll 4
      for (int64_t i = 0; i < 4; ++i) {
        float* const at = out + 4 * i * to.frequency;
        store(at, p.v[i] - r.v[i]);
        store(at + to.frequency, q.v[i] + r.v[i]);
        store(at + 2 * to.frequency, r.v[i] - q.v[i]);
        store(at + 3 * to.frequency, u.v[i] - q.v[i]);
      }
      p = r;
      q = u;
    }
  });
}

// Writes y = A^T m A of the tiles of a run.
inline void transform_outputs(const WinogradShape& s, const Run& run, const Transformed& from, float* images) {
  const int64_t channels = s.out_channels, below = s.width * channels;
  const bool two_rows = 2 * run.row + 1 < s.height;
  float* const row = images + (run.image * s.height + 2 * run.row) * below;
  channel_vectors(channels, [&](int64_t c) {
    const float* in = from.data + run.at * from.row + c;
    for (int64_t t = 0; t < run.count; ++t, in += from.row) {
      vf top[4], bottom[4];
#pragma GCC unroll 4
      for (int64_t j = 0; j < 4; ++j) {
        const float* const at = in + j * from.frequency;
        const vf a = load<vf>(at), b = load<vf>(at + 4 * from.frequency), d = load<vf>(at + 8 * from.frequency);
        top[j] = a + b + d;
        bottom[j] = b - d + load<vf>(at + 12 * from.frequency);
      }
      const int64_t x = 2 * (run.column + t);
      float* const to = row + x * channels + c;
      const bool two_columns = x + 1 < s.width;
      store(to, top[0] + top[1] + top[2]);
      if (two_columns) store(to + channels, top[1] - top[2] + top[3]);
      if (!two_rows) continue;
      store(to + below, bottom[0] + bottom[1] + bottom[2]);
      if (two_columns) store(to + below + channels, bottom[1] - bottom[2] + bottom[3]);
    }
  });
}

// Writes A dy A^T of the tiles of a run.
inline void transform_gradients(const WinogradShape& s, const Run& run, const float* images, const Transformed& to) {
  const int64_t channels = s.out_channels, below = s.width * channels;
  const bool two_rows = 2 * run.row + 1 < s.height;
  const float* const row = images + (run.image * s.height + 2 * run.row) * below;
  channel_vectors(channels, [&](int64_t c) {
    float* out = to.data + run.at * to.row + c;
    for (int64_t t = 0; t < run.count; ++t, out += to.row) {
      const int64_t x = 2 * (run.column + t);
      const float* const at = row + x * channels + c;
      const bool two_columns = x + 1 < s.width;
      const vf a = load<vf>(at), b = two_columns ? load<vf>(at + channels) : vf{};
      const vf d = two_rows ? load<vf>(at + below) : vf{};
      const vf e = two_rows && two_columns ? load<vf>(at + below + channels) : vf{};
      const auto write = [&](int64_t i, vf left, vf right) {
        float* const at = out + 4 * i * to.frequency;
        store(at, left);
        store(at + to.frequency, left + right);
        store(at + 2 * to.frequency, left - right);
        store(at + 3 * to.frequency, right);
      };
      write(0, a, b);
      write(1, a + d, b + e);
      write(2, a - d, b - e);
      write(3, d, e);
    }
  });
}

// Transforms three values by G.
inline void filter_line(vf a, vf b, vf c, vf (&to)[4]) {
  const vf ends = (a + c) * 0.5f, middle = b * 0.5f;
  to[0] = a;
  to[1] = ends + middle;
  to[2] = ends - middle;
  to[3] = c;
}

// Transforms four values by G^T.
inline void filter_gradient_line(vf a, vf b, vf c, vf d, vf (&to)[3]) {
  const vf half = (b + c) * 0.5f;
  to[0] = a + half;
  to[1] = (b - c) * 0.5f;
  to[2] = half + d;
}

}  // namespace oekd::OEKD_ISA
