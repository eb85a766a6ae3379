// Kernels of the direct convolution, compiled once for each instruction set (setup.py).
//
// The images become padded planes (geometry.h). Then
//
//   y[k]          = sum over c, tap of w[k, c, tap] * x[c] shifted by the tap
//   dx[c]         = the same for dy with the flipped filter; with stride 2 once for each parity of row and column
//   dw[k, c, tap] = sum over pixels of dy[k] * x[c] shifted by the tap
//
// A tile of sums stays in registers, so that each loaded value is used several times (tiles.h, weight_sums.h).
#include "cpu/direct_conv/ahead.h"
#include "cpu/direct_conv/tiles.h"
#include "cpu/direct_conv/weight_sums.h"

namespace oekd::OEKD_ISA {
namespace {

constexpr int64_t SUM_VECTORS = REGISTERS == 32 ? 128 : 1024 / LANES;  // at least, in a sum of a weight gradient
constexpr int64_t CACHE_FLOATS = int64_t{1} << 17;  // 512 KB, a typical second-level cache
constexpr int64_t LINE = 16;                        // floats of a cache line

// Distance between the planes of outputs. It is no power of two, for which caches hold few lines.
int64_t output_plane(const Cover& cover) { return (cover.vectors() + 1) * LANES; }

// Floats for the outputs of a pass. from_planes reads a few floats beyond the last plane.
int64_t output_planes(int64_t channels, const Cover& cover) { return channels * output_plane(cover) + LANES; }

// Floats of `planes`, so that what follows them is aligned.
int64_t aligned_size(const Planes& planes) { return round_up(planes.size(), LINE); }

// Computes one parity of one output image, [height, width, channels].
void run_pass(const Pass& pass, const Planes& from, const float* planes, const float* packed, int64_t width,
              int64_t channels, int64_t stride, float* image, float* scratch, Ahead& ahead) {
  const Cover cover = from.cover(pass.height, pass.width);
  const int64_t vectors = cover.vectors(), plane = output_plane(cover);
  int64_t at[MOST_VECTORS];
  for (int64_t first = 0; first < vectors;) {
    const int64_t count = part_of(vectors - first, tile_vectors(channels));
    for (int64_t v = 0; v < count; ++v) at[v] = cover.place(first + v);
    ahead.request(parts(vectors - first, count));
    with_constant<MOST_VECTORS>(count, [&]<int64_t V>() {
      tiles<V>(pass, from, planes, at, packed, scratch + first * LANES, plane, channels);
    });
    first += count;
  }
  const int64_t row = from.whole ? from.pitch : cover.across * LANES;
  // Rows that are adjacent in the image as well are converted as one.
  const bool joined = stride == 1 && row == width;
  const int64_t rows = joined ? 1 : pass.height, pixels = joined ? pass.height * width : pass.width;
  for (int64_t i = 0; i < rows; ++i) {
    from_planes(scratch + i * row, plane, pixels, channels,
                image + ((i * stride + pass.row) * width + pass.column) * channels, stride * channels);
  }
}

// Number of images that are processed together, so that the sums over pixels are long.
int64_t together(const ConvShape& s) {
  const Planes x = input_planes(s), dy = gradient_planes(s);
  const int64_t wanted = parts(SUM_VECTORS, x.cover(s.out_height(), s.out_width()).vectors());
  const int64_t fitting = CACHE_FLOATS / (x.size() + dy.size());
  return fitting < 1 ? 1 : wanted < fitting ? wanted : fitting;
}

// Floats for int64_t each.
int64_t places_floats(const ConvShape& s) { return round_up(s.in_channels * s.taps() * 2, LINE); }

int64_t forward_scratch(const ConvShape& s) {
  const Planes x = input_planes(s);
  return aligned_size(x) + output_planes(s.out_channels, x.cover(s.out_height(), s.out_width()));
}

int64_t backward_scratch(const ConvShape& s) {
  const int64_t images = together(s);
  const Planes x = input_planes(s, images), dy = gradient_planes(s, images);
  return places_floats(s) + aligned_size(x) + aligned_size(dy) +
         output_planes(s.in_channels, dy.cover(s.out_height(), s.out_width()));
}

int64_t packed_size(const ConvShape& s) { return s.weights(); }

void pack_forward(const ConvShape& s, const float* weight, float* packed) {
  pack(forward_pass(s), s.out_channels, s.in_channels, weight, s.in_channels * s.taps(), s.taps(), packed);
}

void pack_backward(const ConvShape& s, const float* weight, float* packed) {
  for (int64_t row = 0; row < s.stride; ++row) {
    for (int64_t column = 0; column < s.stride; ++column) {
      const Pass pass = backward_pass(s, row, column);
      pack(pass, s.in_channels, s.out_channels, weight, s.taps(), s.in_channels * s.taps(), packed);
      packed += s.in_channels * s.out_channels * pass.taps;
    }
  }
}

inline void clear(float* p, int64_t n) { __builtin_memset(p, 0, n * sizeof(float)); }

void forward(const ConvShape& s, int64_t images, const float* x, const float* packed, float* y, float* scratch) {
  const Planes from = input_planes(s);
  const Pass pass = forward_pass(s);
  clear(scratch, from.size());
  for (int64_t n = 0; n < images; ++n) {
    from.fill(x + n * s.in_size(), scratch);
    Ahead ahead;
    if (n + 1 < images) ahead.add(x + (n + 1) * s.in_size(), s.in_size());
    ahead.add(y + n * s.out_size(), s.out_size());
    run_pass(pass, from, scratch, packed, s.out_width(), s.out_channels, 1, y + n * s.out_size(),
             scratch + aligned_size(from), ahead);
  }
}

void input_gradient(const ConvShape& s, const Planes& from, const float* planes, const float* packed, float* dx,
                    float* scratch, Ahead& ahead) {
  for (int64_t row = 0; row < s.stride; ++row) {
    for (int64_t column = 0; column < s.stride; ++column) {
      const Pass pass = backward_pass(s, row, column);
      run_pass(pass, from, planes, packed, s.width, s.in_channels, s.stride, dx, scratch, ahead);
      packed += s.in_channels * s.out_channels * pass.taps;
    }
  }
}

void weight_gradient(const ConvShape& s, int64_t images, const Planes& x_form, const float* x, const Planes& dy_form,
                     const float* dy, const int64_t* places, float* dweight) {
  const int64_t along_k = s.in_channels * s.taps();
  const Sweep sweep{images, x_form.cover(s.out_height(), s.out_width()), x_form.image(), dy_form.image(),
                    dy_form.channel()};
  const float* const first_pixel = dy + dy_form.pad * dy_form.pitch + dy_form.pad;
  for (int64_t first = 0; first < s.out_channels;) {
    const int64_t block = weight_outputs(s.out_channels - first);
    const float* const from = first_pixel + first * dy_form.channel();
    float* const to = dweight + first * along_k;
    with_constant<MOST_WEIGHT_OUTPUTS>(block, [&]<int64_t K>() {
      weight_sums_of<K>(sweep, x, places, along_k, from, to, along_k);
    });
    first += block;
  }
}

void backward(const ConvShape& s, int64_t images, const float* dy, const float* x, const float* packed, float* dx,
              float* dweight, float* scratch) {
  const int64_t most = together(s);
  const Planes x_form = input_planes(s, most), dy_form = gradient_planes(s, most);
  int64_t* const places = reinterpret_cast<int64_t*>(scratch);  // where weight (c, tap) reads in the input planes
  float* const x_planes = scratch + places_floats(s);
  float* const dy_planes = x_planes + aligned_size(x_form);
  float* const out = dy_planes + aligned_size(dy_form);
  clear(x_planes, out - x_planes);
  const Pass pass = forward_pass(s);
  for (int64_t c = 0; c < s.in_channels; ++c) {
    for (int64_t t = 0; t < pass.taps; ++t) places[c * pass.taps + t] = c * x_form.channel() + pass.offset[t];
  }
  for (int64_t first = 0; first < images; first += most) {
    const int64_t count = images - first < most ? images - first : most;
    for (int64_t n = 0; n < count; ++n) {
      float* const planes = dy_planes + n * dy_form.image();
      dy_form.fill(dy + (first + n) * s.out_size(), planes);
      if (dx) {
        Ahead ahead;
        if (first + n + 1 < images) ahead.add(dy + (first + n + 1) * s.out_size(), s.out_size());
        if (dweight) ahead.add(x + (first + n) * s.in_size(), s.in_size());
        ahead.add(dx + (first + n) * s.in_size(), s.in_size());
        input_gradient(s, dy_form, planes, packed, dx + (first + n) * s.in_size(), out, ahead);
      }
      if (dweight) x_form.fill(x + (first + n) * s.in_size(), x_planes + n * x_form.image());
    }
    if (dweight) weight_gradient(s, count, x_form, x_planes, dy_form, dy_planes, places, dweight);
  }
}

}  // namespace

const ConvKernel direct_conv_kernel{forward_scratch, backward_scratch, packed_size, pack_forward, pack_backward,
                             forward,         backward};

}  // namespace oekd::OEKD_ISA
