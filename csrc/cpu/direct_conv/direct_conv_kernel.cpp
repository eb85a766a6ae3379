// Kernels of the direct convolution, compiled for the baseline and for AVX2 (setup.py).
//
// The images become padded planes (geometry.h). Then
//
//   y[k]          = sum over c, tap of w[k, c, tap] * x[c] shifted by the tap
//   dx[c]         = the same for dy with the flipped filter; with stride 2 once for each parity of row and column
//   dw[k, c, tap] = sum over pixels of dy[k] * x[c] shifted by the tap
//
// A tile of 9 to 12 sums stays in registers, so that each loaded value is used three or four times.
#include "cpu/direct_conv/geometry.h"

namespace oekd::OEKD_ISA {
namespace {

constexpr int64_t VECTORS_A_SUM = 1024 / LANES;     // at least, in the sum of a weight gradient, if the cache allows
constexpr int64_t CACHE_FLOATS = int64_t{1} << 17;  // 512 KB, a typical second-level cache

// Channels of the next block: with 16 registers, three or four of them. Numbers other than 1, 2 and 5 are divided into
// threes, or into fours followed by threes.
inline int64_t block_of(int64_t channels) {
  if (channels == 5) return 3;
  return channels < 4 ? channels : channels % 3 ? 4 : 3;
}

// Vectors of a tile, so that its sums and operands fit 16 registers.
inline int64_t tile_vectors(int64_t channels) { return channels % 3 ? 3 : 4; }
constexpr int64_t MOST_VECTORS = 4;

// Keeps a value in a register: compilers would otherwise load it again at each use.
inline vf keep(vf x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#endif
  return x;
}

// Reorders w[k, c, tap], stored at weight[k * along_k + c * along_c + tap], to [block][c][tap][k in the block].
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

// Computes V vectors of K outputs. The smaller of the filter values and the pixels is kept in registers with the sums.
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

// Calls run.operator()<n>(), for n from 1 to MOST.
template <int64_t MOST, class Run>
inline void with_constant(int64_t n, const Run& run) {
  if constexpr (MOST > 1) {
    if (n < MOST) return with_constant<MOST - 1>(n, run);
  }
  run.template operator()<MOST>();
}

// Computes V vectors of all outputs. The pixels stay in the first-level cache while the filters are read in order.
template <int64_t V>
void tiles(const Pass& pass, const Planes& from, const float* planes, const int64_t* at, const float* packed,
           float* out, int64_t out_plane, int64_t channels) {
  constexpr int64_t MOST_OUTPUTS = V > 3 ? 3 : 4;
  for (int64_t first = 0; first < channels;) {
    const int64_t block = block_of(channels - first);
    with_constant<MOST_OUTPUTS>(block, [&]<int64_t K>() {
      tile<V, K>(pass, from.channels, from.channel(), planes, at, packed, out, out_plane);
    });
    packed += block * from.channels * pass.taps;
    out += block * out_plane;
    first += block;
  }
}

// Computes one parity of one output image, [height, width, channels].
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

// Adds the sums of four vectors to the first `count` of `sums`.
#if defined(__AVX__)
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

// The pixels that a weight gradient is summed over.
struct Sweep {
  int64_t images;
  Cover cover;                // of one image, in x and in dy
  int64_t x_image, dy_image;  // distances between images
  int64_t dy_channel;         // distance between channels of dy
};

// Computes the weight gradients of K outputs for E weights (c, tap); e[j] is where the input of weight j starts.
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
  // The K * E sums, padded to a multiple of four.
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
  for (; i + 3 <= count; i += 3) weight_sums<3, K>(s, x, places + i, dy, dweight + i, along_k);
  for (; i < count; ++i) weight_sums<1, K>(s, x, places + i, dy, dweight + i, along_k);
}

// Number of images that are processed together, so that the sums over pixels are long.
int64_t together(const ConvShape& s) {
  const Planes x = input_planes(s), dy = gradient_planes(s);
  const int64_t wanted = parts(VECTORS_A_SUM, x.cover(s.out_height(), s.out_width()).vectors());
  const int64_t fitting = CACHE_FLOATS / (x.size() + dy.size());
  return fitting < 1 ? 1 : wanted < fitting ? wanted : fitting;
}

int64_t places_floats(const ConvShape& s) { return s.in_channels * s.taps() * 2; }  // int64_t each

// Floats for the outputs of a pass. from_planes reads a few floats beyond the last plane.
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
    run_pass(pass, from, scratch, packed, s.out_width(), s.out_channels, 1, y + n * s.out_size(),
             scratch + from.size());
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
    const int64_t block = block_of(s.out_channels - first);
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
  int64_t* const places = reinterpret_cast<int64_t*>(scratch);  // where weight (c, tap) reads in the input planes
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
