// Geometry of the direct convolution: how images are laid out as padded planes, and where each filter tap reads.
//
// With stride 2 each plane is divided into its even and odd rows and columns, so that the pixels which a tap reads for
// neighbouring outputs are adjacent for both strides.
#pragma once

#include "cpu/direct_conv/direct_conv.h"
#include "cpu/simd/blocks.h"
#include "cpu/simd/planes.h"
#include "cpu/simd/rows.h"

namespace oekd::OEKD_ISA {

constexpr int64_t MAX_TAPS = 9;

// The vectors that cover an output of [height, width]: either each row separately, or all rows as one run of pixels
// that includes the columns between two rows.
struct Cover {
  int64_t rows, across;  // across: vectors in a row
  int64_t pitch;         // distance between rows of the planes that are read

  int64_t vectors() const { return rows * across; }
  int64_t place(int64_t vector) const { return vector / across * pitch + vector % across * LANES; }
};

inline Cover cover_of_rows(int64_t height, int64_t width, int64_t pitch) {
  return {height, parts(width, LANES), pitch};
}

inline Cover cover_of_plane(int64_t height, int64_t width, int64_t pitch) {
  return {1, parts((height - 1) * pitch + width, LANES), pitch};
}

// Padded planes of images, divided into phases: plane (a, b) holds rows a, a + step, ... and columns b, b + step, ...
struct Planes {
  int64_t channels, height, width;  // size of an image
  int64_t pad, step, phases;        // phases along each axis
  int64_t images;                   // number of images, adjacent in each channel
  bool whole;                       // whether vectors cover whole planes rather than single rows
  int64_t rows, pitch;              // of a plane; if vectors cover single rows, they never extend beyond the pitch

  // reach: how many rows and columns beyond an output of [out_height, out_width] the filter taps read.
  Planes(int64_t channels, int64_t height, int64_t width, int64_t pad, int64_t step, int64_t phases, int64_t reach,
         int64_t out_height, int64_t out_width, int64_t images)
      : channels(channels), height(height), width(width), pad(pad), step(step), phases(phases), images(images),
        whole(cover_of_plane(out_height, out_width, out_width + reach).vectors() <
              cover_of_rows(out_height, out_width, 0).vectors()),
        rows(out_height + reach), pitch((whole ? out_width : round_up(out_width, LANES)) + reach) {}

  // The cover of an output that is at most [out_height, out_width].
  Cover cover(int64_t outputs_high, int64_t outputs_wide) const {
    return whole ? cover_of_plane(outputs_high, outputs_wide, pitch) : cover_of_rows(outputs_high, outputs_wide, pitch);
  }

  int64_t plane() const { return rows * pitch + (whole ? LANES : 0); }  // the last vector extends beyond the rows
  int64_t image() const { return phases * phases * plane(); }
  int64_t channel() const { return images * image(); }
  int64_t size() const { return channels * channel(); }

  // Copies one image into `planes`. Borders are not written; the caller has set them to 0.
  void fill(const float* image, bool planar, float* planes) const {
    planar ? fill_from_planes(image, planes) : fill_from_pixels(image, planes);
  }

  // Copies an image [channels, height, width]. With step 2 each row is divided into even and odd columns; phase 0 holds
  // the even ones if there is no padding, and the odd ones, from column 1 on, if there is.
  void fill_from_planes(const float* image, float* planes) const {
    for (int64_t c = 0; c < channels; ++c, planes += channel()) {
      for (int64_t y = 0; y < height; ++y, image += width) {
        const int64_t a = (y + pad) % step, row = (y + pad) / step;
        if (a >= phases || row >= rows) continue;
        float* const first = planes + a * phases * plane() + row * pitch;
        if (step == 1) {
          copy_row(image, width, first + pad);
        } else if (phases == 1) {
          split_row(image, width, first, nullptr);
        } else {
          split_row(image, width, first + plane(), first + 1);
        }
      }
    }
  }

  // Copies an image [height, width, channels].
  void fill_from_pixels(const float* image, float* planes) const {
    for (int64_t a = 0; a < phases; ++a) {
      for (int64_t b = 0; b < phases; ++b) {
        float* const phase = planes + (a * phases + b) * plane();
        const int64_t column = b < pad ? (pad - b + step - 1) / step : 0, x = column * step + b - pad;
        for (int64_t row = 0; row < rows; ++row) {
          const int64_t y = row * step + a - pad;
          if (y < 0 || y >= height || x >= width) continue;
          to_planes(image + (y * width + x) * channels, step * channels, (width - x + step - 1) / step, channels,
                    phase + row * pitch + column, channel());
        }
      }
    }
  }
};

// One pass over planes: the outputs of one parity of row and column (all outputs with stride 1), and the taps they use.
struct Pass {
  int64_t row, column;         // parity
  int64_t height, width;       // outputs
  int64_t taps = 0;
  int64_t offset[MAX_TAPS];    // where a tap reads, relative to the output
  int64_t weight[MAX_TAPS];    // index of the tap in the filter
};

inline Planes input_planes(const ConvShape& s, int64_t images = 1) {
  return {s.in_channels, s.height, s.width, s.side / 2, s.stride, s.side == 1 ? 1 : s.stride,
          (s.side - 1) / s.stride, s.out_height(), s.out_width(), images};
}

inline Planes gradient_planes(const ConvShape& s, int64_t images = 1) {
  return {s.out_channels, s.out_height(), s.out_width(), s.stride == 1 ? s.side / 2 : 0, 1, 1,
          (s.side - 1) / s.stride, s.out_height(), s.out_width(), images};
}

inline Pass forward_pass(const ConvShape& s) {
  const Planes x = input_planes(s);
  Pass pass{0, 0, s.out_height(), s.out_width()};
  for (int64_t i = 0; i < s.side; ++i) {
    for (int64_t j = 0; j < s.side; ++j, ++pass.taps) {
      const int64_t phase = i % s.stride * x.phases + j % s.stride;
      pass.offset[pass.taps] = phase * x.plane() + i / s.stride * x.pitch + j / s.stride;
      pass.weight[pass.taps] = i * s.side + j;
    }
  }
  return pass;
}

// Tap i of output row (r + pad - i) / stride reads input row r, if the division is exact.
inline Pass backward_pass(const ConvShape& s, int64_t row, int64_t column) {
  const Planes dy = gradient_planes(s);
  Pass pass{row, column, (s.height - row + s.stride - 1) / s.stride, (s.width - column + s.stride - 1) / s.stride};
  const int64_t pad = s.side / 2;
  for (int64_t i = s.side; i-- > 0;) {
    for (int64_t j = s.side; j-- > 0;) {
      if ((row + pad - i) % s.stride || (column + pad - j) % s.stride) continue;
      const int64_t down = (row + pad - i) / s.stride + dy.pad, right = (column + pad - j) / s.stride + dy.pad;
      pass.offset[pass.taps] = down * dy.pitch + right;
      pass.weight[pass.taps++] = i * s.side + j;
    }
  }
  return pass;
}

}  // namespace oekd::OEKD_ISA
