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

// Where a pass writes its outputs: vector v of its cover at data + v * LANES, and channels `plane` floats apart.
struct Outputs {
  float* data;
  int64_t plane;
};

void run_pass(const Pass& pass, const Planes& from, const float* planes, const float* packed, int64_t channels,
              const Outputs& outputs, Ahead& ahead) {
  const Cover cover = from.cover(pass.height, pass.width);
  const int64_t vectors = cover.vectors();
  int64_t at[MOST_VECTORS];
  for (int64_t first = 0; first < vectors;) {
    const int64_t count = part_of(vectors - first, tile_vectors(channels));
    for (int64_t v = 0; v < count; ++v) at[v] = cover.place(first + v);
    ahead.request(parts(vectors - first, count));
    with_constant<MOST_VECTORS>(count, [&]<int64_t V>() {
      tiles<V>(pass, from, planes, at, packed, outputs.data + first * LANES, outputs.plane, channels);
    });
    first += count;
  }
}

// Distance between rows of the outputs of a pass.
int64_t output_pitch(const Planes& from, const Pass& pass) {
  return from.whole ? from.pitch : round_up(pass.width, LANES);
}

// Computes an image of planes, all at once (stride 1).
void planes_of_pass(const Pass& pass, const Planes& from, const float* planes, const float* packed, int64_t channels,
                    float* image, float* scratch, Ahead& ahead) {
  const int64_t pitch = output_pitch(from, pass), size = pass.height * pass.width;
  const Cover cover = from.cover(pass.height, pass.width);
  const bool dense = pitch == pass.width && cover.vectors() * LANES == size;
  if (dense) return run_pass(pass, from, planes, packed, channels, {image, size}, ahead);
  const Outputs outputs{scratch, output_plane(cover)};
  run_pass(pass, from, planes, packed, channels, outputs, ahead);
  for (int64_t c = 0; c < channels; ++c) {
    const float* const plane = outputs.data + c * outputs.plane;
    for (int64_t i = 0; i < pass.height; ++i, image += pass.width) copy_row(plane + i * pitch, pass.width, image);
  }
}

// Computes one parity of an image of pixels, [height, width, channels].
void pixels_of_pass(const Pass& pass, const Planes& from, const float* planes, const float* packed, int64_t width,
                    int64_t channels, int64_t stride, float* image, float* scratch, Ahead& ahead) {
  const Outputs outputs{scratch, output_plane(from.cover(pass.height, pass.width))};
  run_pass(pass, from, planes, packed, channels, outputs, ahead);
  const int64_t pitch = output_pitch(from, pass);
  // Rows that are adjacent in the image as well are converted as one.
  const bool joined = stride == 1 && pitch == width;
  const int64_t rows = joined ? 1 : pass.height, pixels = joined ? pass.height * width : pass.width;
  for (int64_t i = 0; i < rows; ++i) {
    from_planes(scratch + i * pitch, outputs.plane, pixels, channels,
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

// Floats for the outputs of one pass of the input gradient.
int64_t gradient_outputs(const ConvShape& s, const Planes& dy) {
  return round_up(output_planes(s.in_channels, dy.cover(s.out_height(), s.out_width())), LINE);
}

int64_t backward_scratch(const ConvShape& s) {
  const int64_t images = together(s);
  const Planes x = input_planes(s, images), dy = gradient_planes(s, images);
  return places_floats(s) + aligned_size(x) + aligned_size(dy) + s.stride * gradient_outputs(s, dy);
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

void forward(const ConvShape& s, int64_t images, const float* x, bool planar, const float* packed, float* y,
             float* scratch) {
  const Planes from = input_planes(s);
  const Pass pass = forward_pass(s);
  clear(scratch, from.size());
  for (int64_t n = 0; n < images; ++n) {
    from.fill(x + n * s.in_size(), planar, scratch);
    Ahead ahead;
    if (n + 1 < images) ahead.add(x + (n + 1) * s.in_size(), s.in_size());
    ahead.add(y + n * s.out_size(), s.out_size());
    planes_of_pass(pass, from, scratch, packed, s.out_channels, y + n * s.out_size(), scratch + aligned_size(from),
                   ahead);
  }
}

// Computes dx of one image of planes for stride 2: the even and the odd columns of a row separately, then the row.
void merged_input_gradient(const ConvShape& s, const Planes& from, const float* planes, const float* packed, float* dx,
                           float* scratch, Ahead& ahead) {
  for (int64_t row = 0; row < 2; ++row) {
    Outputs outputs[2];
    int64_t pitch[2], rows = 0;
    for (int64_t column = 0; column < 2; ++column) {
      const Pass pass = backward_pass(s, row, column);
      outputs[column] = {scratch + column * gradient_outputs(s, from),
                         output_plane(from.cover(pass.height, pass.width))};
      run_pass(pass, from, planes, packed, s.in_channels, outputs[column], ahead);
      pitch[column] = output_pitch(from, pass);
      rows = pass.height;
      packed += s.in_channels * s.out_channels * pass.taps;
    }
    for (int64_t c = 0; c < s.in_channels; ++c) {
      for (int64_t i = 0; i < rows; ++i) {
        merge_row(outputs[0].data + c * outputs[0].plane + i * pitch[0],
                  outputs[1].data + c * outputs[1].plane + i * pitch[1], s.width,
                  dx + (c * s.height + 2 * i + row) * s.width);
      }
    }
  }
}

void input_gradient(const ConvShape& s, const Planes& from, const float* planes, bool planar, const float* packed,
                    float* dx, float* scratch, Ahead& ahead) {
  if (planar) {
    if (s.stride == 2) return merged_input_gradient(s, from, planes, packed, dx, scratch, ahead);
    return planes_of_pass(backward_pass(s, 0, 0), from, planes, packed, s.in_channels, dx, scratch, ahead);
  }
  for (int64_t row = 0; row < s.stride; ++row) {
    for (int64_t column = 0; column < s.stride; ++column) {
      const Pass pass = backward_pass(s, row, column);
      pixels_of_pass(pass, from, planes, packed, s.width, s.in_channels, s.stride, dx, scratch, ahead);
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
  if (s.side == 3 && s.stride == 1 && !x_form.whole) {
    const float* const first_input = x + x_form.pitch + 1;
    for (int64_t first = 0; first < s.out_channels;) {
      const int64_t block = part_of(s.out_channels - first, MOST_ROW_OUTPUTS);
      with_constant<MOST_ROW_OUTPUTS>(block, [&]<int64_t K>() {
        for (int64_t c = 0; c < s.in_channels; ++c) {
          nine_weight_sums<K>(sweep, first_input + c * x_form.channel(), first_pixel + first * dy_form.channel(),
                              dweight + first * along_k + c * 9, along_k);
        }
      });
      first += block;
    }
    return;
  }
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

void backward(const ConvShape& s, int64_t images, const float* dy, const float* x, bool planar, const float* packed,
              float* dx, float* dweight, float* scratch) {
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
      dy_form.fill(dy + (first + n) * s.out_size(), true, planes);
      if (dx) {
        Ahead ahead;
        if (first + n + 1 < images) ahead.add(dy + (first + n + 1) * s.out_size(), s.out_size());
        if (dweight) ahead.add(x + (first + n) * s.in_size(), s.in_size());
        ahead.add(dx + (first + n) * s.in_size(), s.in_size());
        input_gradient(s, dy_form, planes, planar, packed, dx + (first + n) * s.in_size(), out, ahead);
      }
      if (dweight) x_form.fill(x + (first + n) * s.in_size(), planar, x_planes + n * x_form.image());
    }
    if (dweight) weight_gradient(s, count, x_form, x_planes, dy_form, dy_planes, places, dweight);
  }
}

}  // namespace

const ConvKernel direct_conv_kernel{forward_scratch, backward_scratch, packed_size, pack_forward, pack_backward,
                             forward,         backward};

}  // namespace oekd::OEKD_ISA
