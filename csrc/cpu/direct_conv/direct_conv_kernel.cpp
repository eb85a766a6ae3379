// The kernel of convolutions of few channels, compiled once for each instruction set (setup.py).
//
// An image becomes padded planes; with stride 2 each plane is cut into its even and odd rows and columns, so that what
// one filter tap reads is dense in all cases. Then
//
//   y[k]         = sum over c, tap  of w[k, c, tap] * x[c] moved by the tap
//   dx[c]        = the same of dy, with the filter turned around; with stride 2 once for each parity of row and column
//   dw[k, c, tap] = sum over pixels of dy[k] * x[c] moved by the tap
//
// with a tile of sums in registers, twelve vectors of 16 or 24 of 32, each loaded value used three to eight times.
//
// Vectors cover outputs row by row or, where rows fill them badly, plane by plane: what is between two rows is then
// computed too, and left behind.
#include "cpu/direct_conv/direct_conv.h"
#include "cpu/simd/planes.h"

namespace oekd::OEKD_ISA {
namespace {

constexpr int64_t MAX_TAPS = 9;
constexpr int64_t VECTORS_A_SUM = 1024 / LANES;    // at least, of a weight's gradient, where the cache allows
constexpr int64_t CACHE_FLOATS = int64_t{1} << 17;  // 512 KB: a second-level cache

#if defined(__AVX512F__)
constexpr bool MANY_REGISTERS = true;  // 32
#else
constexpr bool MANY_REGISTERS = false;
#endif

inline int64_t parts(int64_t n, int64_t most) { return (n + most - 1) / most; }
inline int64_t round_up(int64_t n, int64_t multiple) { return parts(n, multiple) * multiple; }

// The first of as few parts of n, as even as can be, as have `most` at most.
inline int64_t part_of(int64_t n, int64_t most) { return parts(n, parts(n, most)); }

// The vectors that cover outputs of [height, width]: of each row alone, or of all rows with what is between them.
struct Cover {
  int64_t rows, across;  // vectors across a row
  int64_t pitch;         // from row to row, of what is read

  int64_t vectors() const { return rows * across; }
  int64_t place(int64_t vector) const { return vector / across * pitch + vector % across * LANES; }
};

inline Cover cover_of_rows(int64_t height, int64_t width, int64_t pitch) {
  return {height, parts(width, LANES), pitch};
}

inline Cover cover_of_plane(int64_t height, int64_t width, int64_t pitch) {
  return {1, parts((height - 1) * pitch + width, LANES), pitch};
}

// Planes of an image, cut into phases: plane (a, b) holds padded rows a, a + step, ... and columns b, b + step, ...
struct Planes {
  int64_t channels, height, width;  // of the image
  int64_t pad, step, phases;        // phases along each axis
  int64_t images;                   // beside each other in each channel
  bool whole;                       // vectors cover planes, not rows
  int64_t rows, pitch;              // of a plane; of rows, vectors from any first column of an output stay in the pitch

  // To be read from by taps up to `reach` rows and columns further than an output of [out_height, out_width].
  Planes(int64_t channels, int64_t height, int64_t width, int64_t pad, int64_t step, int64_t phases, int64_t reach,
         int64_t out_height, int64_t out_width, int64_t images)
      : channels(channels), height(height), width(width), pad(pad), step(step), phases(phases), images(images),
        whole(cover_of_plane(out_height, out_width, out_width + reach).vectors() <
              cover_of_rows(out_height, out_width, 0).vectors()),
        rows(out_height + reach), pitch((whole ? out_width : round_up(out_width, LANES)) + reach) {}

  // No more than [out_height, out_width].
  Cover cover(int64_t outputs_high, int64_t outputs_wide) const {
    return whole ? cover_of_plane(outputs_high, outputs_wide, pitch) : cover_of_rows(outputs_high, outputs_wide, pitch);
  }

  int64_t plane() const { return rows * pitch + (whole ? LANES : 0); }  // the last vector reads further than its rows
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

// With 16 registers channels are taken three or four at a time: all but 1, 2 and 5 are threes, or fours and then threes.
inline int64_t block_of(int64_t channels) {
  if (channels == 5) return 3;
  return channels < 4 ? channels : channels % 3 ? 4 : 3;
}

// Outputs and vectors of a tile.
inline int64_t tile_outputs(int64_t channels) { return MANY_REGISTERS ? part_of(channels, 6) : block_of(channels); }
inline int64_t tile_vectors(int64_t channels) {
  if (MANY_REGISTERS) return channels > 3 ? 4 : 8;
  return channels % 3 ? 3 : 4;
}
constexpr int64_t MOST_VECTORS = MANY_REGISTERS ? 8 : 4;

// Outputs whose weights' gradients are summed together.
inline int64_t sum_outputs(int64_t channels) { return MANY_REGISTERS ? part_of(channels, 4) : block_of(channels); }

// Into a register, and no other: compilers load a value again where they think it cheap.
inline vf keep(vf x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#endif
  return x;
}

// w[k, c, tap] at weight[k * along_k + c * along_c + tap], to blocks of outputs: [block][c][tap][k of the block].
void pack(const Pass& pass, int64_t outputs, int64_t inputs, const float* weight, int64_t along_k, int64_t along_c,
          float* packed) {
  for (int64_t first = 0; first < outputs;) {
    const int64_t block = tile_outputs(outputs - first);
    for (int64_t c = 0; c < inputs; ++c) {
      for (int64_t t = 0; t < pass.taps; ++t) {
        for (int64_t k = 0; k < block; ++k) *packed++ = weight[(first + k) * along_k + c * along_c + pass.weight[t]];
      }
    }
    first += block;
  }
}

// V vectors of K outputs. Of filter values and pixels, the fewer are kept in registers: with the sums, they just fit.
template <int64_t V, int64_t K>
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
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(out + k * out_plane + v * LANES, sums[k][v]);
  }
}

// Calls run with `n` as a constant: 1 to MOST.
template <int64_t MOST, class Run>
inline void with_constant(int64_t n, const Run& run) {
  if constexpr (MOST > 1) {
    if (n < MOST) return with_constant<MOST - 1>(n, run);
  }
  run.template operator()<MOST>();
}

// V vectors of all outputs. The pixels stay in the first-level cache, filters are read from the first to the last.
template <int64_t V>
void tiles(const Pass& pass, const Planes& from, const float* planes, const int64_t* at, const float* packed, float* out,
           int64_t out_plane, int64_t channels) {
  constexpr int64_t MOST_OUTPUTS = MANY_REGISTERS ? (V > 4 ? 3 : 6) : V > 3 ? 3 : 4;
  for (int64_t first = 0; first < channels;) {
    const int64_t block = tile_outputs(channels - first);
    with_constant<MOST_OUTPUTS>(block, [&]<int64_t K>() {
      tile<V, K>(pass, from.channels, from.channel(), planes, at, packed, out, out_plane);
    });
    packed += block * from.channels * pass.taps;
    out += block * out_plane;
    first += block;
  }
}

// One parity of one output image, [height, width, channels].
void run_pass(const Pass& pass, const Planes& from, const float* planes, const float* packed, int64_t width,
              int64_t channels, int64_t stride, float* image, float* scratch) {
  const Cover cover = from.cover(pass.height, pass.width);
  const int64_t vectors = cover.vectors();
  int64_t at[MOST_VECTORS];
  for (int64_t first = 0; first < vectors;) {
    const int64_t count = part_of(vectors - first, tile_vectors(channels));
    for (int64_t v = 0; v < count; ++v) at[v] = cover.place(first + v);
    with_constant<MOST_VECTORS>(count, [&]<int64_t V>() {
      tiles<V>(pass, from, planes, at, packed, scratch + first * LANES, vectors * LANES, channels);
    });
    first += count;
  }
  const int64_t row = from.whole ? from.pitch : cover.across * LANES;
  for (int64_t i = 0; i < pass.height; ++i) {
    from_planes(scratch + i * row, vectors * LANES, pass.width, channels,
                image + ((i * stride + pass.row) * width + pass.column) * channels, stride * channels);
  }
}

#if defined(__AVX__)
#if OEKD_LANES == 16
inline __m256 halves(vf v) {
  const __m512 whole = bits<__m512>(v);
  return _mm256_add_ps(_mm512_castps512_ps256(whole), _mm512_extractf32x8_ps(whole, 1));
}
#else
inline __m256 halves(vf v) { return bits<__m256>(v); }
#endif

// Sums of four vectors, in order.
inline void add_sums(const vf* v, float* const* sums, int64_t count) {
  const __m256 ab = _mm256_hadd_ps(halves(v[0]), halves(v[1]));
  const __m256 cd = _mm256_hadd_ps(halves(v[2]), halves(v[3]));
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
  int64_t images;
  Cover cover;                        // of an image, in x and in dy
  int64_t x_image, dy_image;          // from image to image
  int64_t dy_channel;
};

// Gradients of K outputs' weights at E places of the inputs; e[i]: where input place i starts.
template <int E, int64_t K>
inline void weight_sums(const Sweep& s, const float* x, const int64_t* e, const float* dy, float* dweight,
                        int64_t along_k) {
  vf sums[K][E]{};
  const float *from[E], *grad[K];
  for (int j = 0; j < E; ++j) from[j] = x + e[j];
  for (int k = 0; k < K; ++k) grad[k] = dy + k * s.dy_channel;
  for (int64_t n = 0; n < s.images; ++n) {
    int64_t x_at = n * s.x_image, dy_at = n * s.dy_image;
    for (int64_t i = 0; i < s.cover.rows; ++i, x_at += s.cover.pitch, dy_at += s.cover.pitch) {
      for (int64_t v = 0; v < s.cover.across * LANES; v += LANES) {
        vf places[E];
        for (int j = 0; j < E; ++j) places[j] = keep(load<vf>(from[j] + x_at + v));
        for (int k = 0; k < K; ++k) {
          const vf g = load<vf>(grad[k] + dy_at + v);
          for (int j = 0; j < E; ++j) sums[k][j] += g * places[j];
        }
      }
    }
  }
  // [K * E], filled up to whole fours.
  constexpr int64_t COUNT = K * E, FOURS = (COUNT + 3) / 4;
  vf flat[FOURS * 4]{};
  float* to[FOURS * 4]{};
  for (int k = 0; k < K; ++k) {
    for (int j = 0; j < E; ++j) {
      flat[k * E + j] = sums[k][j];
      to[k * E + j] = dweight + k * along_k + j;
    }
  }
  for (int64_t i = 0; i < FOURS; ++i) add_sums(flat + 4 * i, to + 4 * i, COUNT - 4 * i < 4 ? COUNT - 4 * i : 4);
}

template <int64_t K>
void weight_sums_of(const Sweep& s, const float* x, const int64_t* places, int64_t count, const float* dy,
                    float* dweight, int64_t along_k) {
  int64_t i = 0;
  if constexpr (MANY_REGISTERS) {
    for (; i + 6 <= count; i += 6) weight_sums<6, K>(s, x, places + i, dy, dweight + i, along_k);
  }
  for (; i + 3 <= count; i += 3) weight_sums<3, K>(s, x, places + i, dy, dweight + i, along_k);
  for (; i < count; ++i) weight_sums<1, K>(s, x, places + i, dy, dweight + i, along_k);
}

// Images that are turned into planes together, so that sums over pixels are long.
int64_t together(const ConvShape& s) {
  const Planes x = input_planes(s), dy = gradient_planes(s);
  const int64_t wanted = parts(VECTORS_A_SUM, x.cover(s.out_height(), s.out_width()).vectors());
  const int64_t fitting = CACHE_FLOATS / (x.size() + dy.size());
  return fitting < 1 ? 1 : wanted < fitting ? wanted : fitting;
}

int64_t places_floats(const ConvShape& s) { return s.in_channels * s.taps() * 2; }  // int64_t each

// Outputs of a pass; of the last plane, from_planes reads a few floats too many.
int64_t output_planes(int64_t channels, const Cover& cover) { return channels * cover.vectors() * LANES + LANES; }

int64_t forward_scratch(const ConvShape& s) {
  const Planes x = input_planes(s);
  return x.size() + output_planes(s.out_channels, x.cover(s.out_height(), s.out_width()));
}

int64_t backward_scratch(const ConvShape& s) {
  const int64_t images = together(s);
  const Planes x = input_planes(s, images), dy = gradient_planes(s, images);
  return places_floats(s) + x.size() + dy.size() +
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
  const int64_t along_k = s.in_channels * s.taps();
  const Sweep sweep{images, x_form.cover(s.out_height(), s.out_width()), x_form.image(), dy_form.image(),
                    dy_form.channel()};
  const float* const first_pixel = dy + dy_form.pad * dy_form.pitch + dy_form.pad;
  for (int64_t first = 0; first < s.out_channels;) {
    const int64_t block = sum_outputs(s.out_channels - first);
    const float* const from = first_pixel + first * dy_form.channel();
    float* const to = dweight + first * along_k;
    with_constant<4>(block, [&]<int64_t K>() { weight_sums_of<K>(sweep, x, places, along_k, from, to, along_k); });
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
