// The kernel of convolutions of few channels, compiled once an instruction set.
//
// An image becomes padded planes; with stride 2 each plane is cut into its even and odd rows and columns, so that what
// one filter tap reads is dense in all cases. Then
//
//   y[k]         = sum over c, tap  of w[k, c, tap] * x[c] moved by the tap
//   dx[c]        = the same of dy, with the filter turned around; with stride 2 once for each parity of row and column
//   dw[k, c, tap] = sum over pixels of dy[k] * x[c] moved by the tap
//
// with a tile of twelve vectors in registers, each loaded value used three or four times.
#include "direct_conv.h"
#include "planes.h"

namespace oekd::OEKD_ISA {
namespace {

constexpr int64_t MAX_TAPS = 9;
constexpr int64_t VECTORS_A_SUM = 128;             // at least, of a weight's gradient, where the cache allows
constexpr int64_t CACHE_FLOATS = int64_t{1} << 17;  // 512 KB: a second-level cache

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Planes of an image, cut into phases: plane (a, b) holds padded rows a, a + step, ... and columns b, b + step, ...
struct Planes {
  int64_t channels, height, width;  // of the image
  int64_t pad, step, phases;        // phases along each axis
  int64_t images;                   // beside each other in each channel
  int64_t rows, pitch;              // of a plane; vectors from any first column of an output row stay in the pitch

  // To be read from by taps up to `reach` rows and columns further than an output of [out_height, out_width].
  Planes(int64_t channels, int64_t height, int64_t width, int64_t pad, int64_t step, int64_t phases, int64_t reach,
         int64_t out_height, int64_t out_width, int64_t images)
      : channels(channels), height(height), width(width), pad(pad), step(step), phases(phases), images(images),
        rows(out_height + reach), pitch(round_up(out_width, LANES) + reach) {}

  int64_t plane() const { return rows * pitch; }
  int64_t image() const { return phases * phases * plane(); }
  int64_t channel() const { return images * image(); }
  int64_t size() const { return channels * channel(); }

  // One image, from `planes` on. Borders are left as they are: 0 from the start.
  void fill(const float* image, float* planes) const {
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

// One sweep over planes: the outputs of one parity (all of them with stride 1), and which taps make them.
struct Pass {
  int64_t row, column;         // parity
  int64_t height, width;       // outputs
  int64_t taps = 0;
  int64_t offset[MAX_TAPS];    // where a tap reads, from the output's place
  int64_t weight[MAX_TAPS];    // which of the filter's taps it is
};

Planes input_planes(const ConvShape& s, int64_t images = 1) {
  return {s.in_channels, s.height, s.width, s.side / 2, s.stride, s.side == 1 ? 1 : s.stride,
          (s.side - 1) / s.stride, s.out_height(), s.out_width(), images};
}

Planes gradient_planes(const ConvShape& s, int64_t images = 1) {
  return {s.out_channels, s.out_height(), s.out_width(), s.stride == 1 ? s.side / 2 : 0, 1, 1,
          (s.side - 1) / s.stride, s.out_height(), s.out_width(), images};
}

Pass forward_pass(const ConvShape& s) {
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

// Input row r is read by tap i of output row (r + pad - i) / stride, where that is whole.
Pass backward_pass(const ConvShape& s, int64_t row, int64_t column) {
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

// Channels are taken three or four at a time: all but 1, 2 and 5 are threes, or fours and then threes.
inline int64_t block_of(int64_t channels) {
  if (channels == 5) return 3;
  return channels < 4 ? channels : channels % 3 ? 4 : 3;
}

// Into a register, and no other: compilers load a value again where they think it cheap.
inline vf keep(vf x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#endif
  return x;
}

// w[k, c, tap] at weight[k * along_k + c * along_c + tap], to blocks of outputs: [block][c][tap][k of the block].
void pack(const Pass& pass, int64_t outputs, int64_t inputs, const float* weight, int64_t along_k, int64_t along_c,
          float* packed) {
  for (int64_t first = 0; first < outputs;) {
    const int64_t block = block_of(outputs - first);
    for (int64_t c = 0; c < inputs; ++c) {
      for (int64_t t = 0; t < pass.taps; ++t) {
        for (int64_t k = 0; k < block; ++k) *packed++ = weight[(first + k) * along_k + c * along_c + pass.weight[t]];
      }
    }
    first += block;
  }
}

// V vectors of K outputs. Of filter values and pixels, the fewer are kept in registers: with the sums, they just fit.
template <int V, int K>
inline void tile(const Pass& pass, int64_t inputs, int64_t channel, const float* planes, const int64_t* at,
                 const float* packed, float* out, int64_t out_plane) {
  vf sums[K][V]{};
  for (int64_t c = 0; c < inputs; ++c, planes += channel) {
    for (int64_t t = 0; t < pass.taps; ++t, packed += K) {
      const float* const from = planes + pass.offset[t];
      if constexpr (K < V) {
        vf w[K];
        for (int k = 0; k < K; ++k) w[k] = keep(splat(packed[k]));
        for (int v = 0; v < V; ++v) {
          const vf x = load<vf>(from + at[v]);
          for (int k = 0; k < K; ++k) sums[k][v] += x * w[k];
        }
      } else {
        vf x[V];
        for (int v = 0; v < V; ++v) x[v] = keep(load<vf>(from + at[v]));
        for (int k = 0; k < K; ++k) {
          const vf w = splat(packed[k]);
          for (int v = 0; v < V; ++v) sums[k][v] += x[v] * w;
        }
      }
    }
  }
  for (int k = 0; k < K; ++k) {
    for (int v = 0; v < V; ++v) store(out + k * out_plane + v * LANES, sums[k][v]);
  }
}

// V vectors of all outputs. The pixels stay in the first-level cache, filters are read from the first to the last.
template <int V>
void tiles(const Pass& pass, const Planes& from, const float* planes, const int64_t* at, const float* packed, float* out,
           int64_t out_plane, int64_t channels) {
  for (int64_t first = 0; first < channels;) {
    const auto run = [&]<int K>() {
      tile<V, K>(pass, from.channels, from.channel(), planes, at, packed, out, out_plane);
    };
    const int64_t block = block_of(channels - first);
    switch (block) {
      case 1: run.template operator()<1>(); break;
      case 2: run.template operator()<2>(); break;
      case 3: run.template operator()<3>(); break;
      default:
        if constexpr (V < 4) run.template operator()<4>();
    }
    packed += block * from.channels * pass.taps;
    out += block * out_plane;
    first += block;
  }
}

// One parity of one output image, [height, width, channels].
void run_pass(const Pass& pass, const Planes& from, const float* planes, const float* packed, int64_t width,
              int64_t channels, int64_t stride, float* image, float* scratch) {
  const int64_t across = round_up(pass.width, LANES) / LANES, vectors = across * pass.height;
  const int64_t most = channels % 3 ? 3 : 4;  // vectors beside blocks of four channels, of three
  int64_t at[4];
  for (int64_t first = 0; first < vectors; first += most) {
    const int64_t count = vectors - first < most ? vectors - first : most;
    for (int64_t v = 0; v < count; ++v) {
      at[v] = (first + v) / across * from.pitch + (first + v) % across * LANES;
    }
    const auto run = [&]<int V>() {
      tiles<V>(pass, from, planes, at, packed, scratch + first * LANES, vectors * LANES, channels);
    };
    switch (count) {
      case 1: run.template operator()<1>(); break;
      case 2: run.template operator()<2>(); break;
      case 3: run.template operator()<3>(); break;
      default: run.template operator()<4>();
    }
  }
  for (int64_t i = 0; i < pass.height; ++i) {
    from_planes(scratch + i * across * LANES, vectors * LANES, pass.width, channels,
                image + ((i * stride + pass.row) * width + pass.column) * channels, stride * channels);
  }
}

#if defined(__AVX__) && OEKD_LANES == 8
// Sums of four vectors, in order.
inline void add_sums(const vf* v, float* const* sums, int64_t count) {
  const __m256 ab = _mm256_hadd_ps(bits<__m256>(v[0]), bits<__m256>(v[1]));
  const __m256 cd = _mm256_hadd_ps(bits<__m256>(v[2]), bits<__m256>(v[3]));
  const __m256 both = _mm256_hadd_ps(ab, cd);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
  float each[4];
  _mm_storeu_ps(each, four);
  for (int64_t i = 0; i < count; ++i) *sums[i] += each[i];
}
#else
inline void add_sums(const vf* v, float* const* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) *sums[i] += static_cast<float>(sum_across(v[i]));
}
#endif

// What one weight's gradient is summed over: vectors of pixels of some images.
struct Sweep {
  int64_t images, height, across;                  // vectors across a row
  int64_t x_pitch, x_gap, dy_pitch, dy_gap;        // gap: from the end of an image's rows to the next image
  int64_t dy_channel;
};

// Gradients of K outputs' weights at E places of the inputs; e[i]: where input place i starts.
template <int E, int K>
inline void weight_sums(const Sweep& s, const float* x, const int64_t* e, const float* dy, float* dweight,
                        int64_t along_k) {
  vf sums[K][E]{};
  for (int64_t v = 0; v < s.across * LANES; v += LANES) {
    const float *from[E], *grad[K];
    for (int j = 0; j < E; ++j) from[j] = x + e[j] + v;
    for (int k = 0; k < K; ++k) grad[k] = dy + k * s.dy_channel + v;
    int64_t x_row = 0, dy_row = 0;
    for (int64_t n = 0; n < s.images; ++n, x_row += s.x_gap, dy_row += s.dy_gap) {
      for (int64_t i = 0; i < s.height; ++i, x_row += s.x_pitch, dy_row += s.dy_pitch) {
        vf places[E];
        for (int j = 0; j < E; ++j) places[j] = keep(load<vf>(from[j] + x_row));
        for (int k = 0; k < K; ++k) {
          const vf g = load<vf>(grad[k] + dy_row);
          for (int j = 0; j < E; ++j) sums[k][j] += g * places[j];
        }
      }
    }
  }
  // [K * E], filled up to whole fours.
  constexpr int COUNT = K * E, FOURS = (COUNT + 3) / 4;
  vf flat[FOURS * 4]{};
  float* to[FOURS * 4]{};
  for (int k = 0; k < K; ++k) {
    for (int j = 0; j < E; ++j) {
      flat[k * E + j] = sums[k][j];
      to[k * E + j] = dweight + k * along_k + j;
    }
  }
  for (int i = 0; i < FOURS; ++i) add_sums(flat + 4 * i, to + 4 * i, COUNT - 4 * i < 4 ? COUNT - 4 * i : 4);
}

template <int K>
void weight_sums_of(const Sweep& s, const float* x, const int64_t* places, int64_t count, const float* dy,
                    float* dweight, int64_t along_k) {
  int64_t i = 0;
  for (; i + 3 <= count; i += 3) weight_sums<3, K>(s, x, places + i, dy, dweight + i, along_k);
  for (; i < count; ++i) weight_sums<1, K>(s, x, places + i, dy, dweight + i, along_k);
}

// Images that are turned into planes together, so that sums over pixels are long.
int64_t together(const ConvShape& s) {
  const int64_t vectors = s.out_height() * round_up(s.out_width(), LANES) / LANES;
  const int64_t wanted = (VECTORS_A_SUM + vectors - 1) / vectors;
  const int64_t fitting = CACHE_FLOATS / (input_planes(s).size() + gradient_planes(s).size());
  return fitting < 1 ? 1 : wanted < fitting ? wanted : fitting;
}

int64_t places_floats(const ConvShape& s) { return s.in_channels * s.taps() * 2; }  // int64_t each

int64_t output_planes(int64_t channels, int64_t height, int64_t width) {
  return channels * height * round_up(width, LANES);
}

int64_t forward_scratch(const ConvShape& s) {
  return input_planes(s).size() + output_planes(s.out_channels, s.out_height(), s.out_width());
}

int64_t backward_scratch(const ConvShape& s) {
  const int64_t images = together(s);
  return places_floats(s) + input_planes(s, images).size() + gradient_planes(s, images).size() +
         output_planes(s.in_channels, s.out_height(), s.out_width());
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
    run_pass(pass, from, scratch, packed, s.out_width(), s.out_channels, 1, y + n * s.out_size(), scratch + from.size());
  }
}

void input_gradient(const ConvShape& s, const Planes& from, const float* planes, const float* packed, float* dx,
                    float* scratch) {
  for (int64_t row = 0; row < s.stride; ++row) {
    for (int64_t column = 0; column < s.stride; ++column) {
      const Pass pass = backward_pass(s, row, column);
      run_pass(pass, from, planes, packed, s.width, s.in_channels, s.stride, dx, scratch);
      packed += s.in_channels * s.out_channels * pass.taps;
    }
  }
}

void weight_gradient(const ConvShape& s, int64_t images, const Planes& x_form, const float* x, const Planes& dy_form,
                     const float* dy, const int64_t* places, float* dweight) {
  const int64_t across = round_up(s.out_width(), LANES) / LANES, along_k = s.in_channels * s.taps();
  const Sweep sweep{images,
                    s.out_height(),
                    across,
                    x_form.pitch,
                    x_form.image() - s.out_height() * x_form.pitch,
                    dy_form.pitch,
                    dy_form.image() - s.out_height() * dy_form.pitch,
                    dy_form.channel()};
  const float* const first_pixel = dy + dy_form.pad * dy_form.pitch + dy_form.pad;
  for (int64_t first = 0; first < s.out_channels;) {
    const int64_t block = block_of(s.out_channels - first);
    const float* const from = first_pixel + first * dy_form.channel();
    float* const to = dweight + first * along_k;
    switch (block) {
      case 1: weight_sums_of<1>(sweep, x, places, along_k, from, to, along_k); break;
      case 2: weight_sums_of<2>(sweep, x, places, along_k, from, to, along_k); break;
      case 3: weight_sums_of<3>(sweep, x, places, along_k, from, to, along_k); break;
      default: weight_sums_of<4>(sweep, x, places, along_k, from, to, along_k);
    }
    first += block;
  }
}

void backward(const ConvShape& s, int64_t images, const float* dy, const float* x, const float* packed, float* dx,
              float* dweight, float* scratch) {
  const int64_t most = together(s);
  const Planes x_form = input_planes(s, most), dy_form = gradient_planes(s, most);
  int64_t* const places = reinterpret_cast<int64_t*>(scratch);  // of a weight [c, tap] in the input's planes
  float* const x_planes = scratch + places_floats(s);
  float* const dy_planes = x_planes + x_form.size();
  float* const out = dy_planes + dy_form.size();
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
      if (dx) input_gradient(s, dy_form, planes, packed, dx + (first + n) * s.in_size(), out);
      if (dweight) x_form.fill(x + (first + n) * s.in_size(), x_planes + n * x_form.image());
    }
    if (dweight) weight_gradient(s, count, x_form, x_planes, dy_form, dy_planes, places, dweight);
  }
}

}  // namespace

const ConvKernel direct_conv_kernel{forward_scratch, backward_scratch, packed_size, pack_forward, pack_backward,
                             forward,         backward};

}  // namespace oekd::OEKD_ISA
