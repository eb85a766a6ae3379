// Vectors of LANES floats in the compiler's vector types, so that one source serves every instruction set.
// setup.py compiles the sources that include it once for each instruction set, with -DOEKD_ISA=<namespace> and
// -DOEKD_LANES=<floats in a vector>.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace oekd::OEKD_ISA {

constexpr int LANES = OEKD_LANES;

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));
// Half as many doubles, and floats.
typedef double vd __attribute__((vector_size(LANES * 4)));
typedef float vhf __attribute__((vector_size(LANES * 2)));

template <class To, class From>
inline To bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  __builtin_memcpy(&y, &x, sizeof y);
  return y;
}

template <class V, class T>
inline V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class V, class T>
inline void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

inline vf splat(float x) { return x - vf{}; }

// The larger value, and b where a is NaN, as the hardware's max returns.
inline vf max(vf a, vf b) { return a > b ? a : b; }

inline float max_across(vf v) {
  float m = v[0];
  for (int i = 1; i < LANES; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

inline double sum_across(vf v) {
  double s = 0;
  for (int i = 0; i < LANES; ++i) s += v[i];
  return s;
}

// e^x for x <= 0 with a relative error below 1e-7. Results below the smallest normal number become 0; NaN stays NaN.
// x = n ln2 + r, |r| <= ln2 / 2: e^x = 2^n (1 + r + r^2 q(r)), q a minimax polynomial (error 4e-9).
inline vf exp_nonpositive(vf x) {
  constexpr float LOWEST = -87.33654f;
  constexpr float ROUND = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const vf clamped = max(splat(LOWEST), x);
  const vf shifted = clamped * 0x1.715476p0f + ROUND;
  const vf n = shifted - ROUND;
  vf r = clamped - n * 0x1.63p-1f;  // ln2 in two parts, the first exact in n * part
  r = r - n * -0x1.bd0106p-13f;
  vf q = r * 0x1.6a23d0p-10f + 0x1.123a20p-7f;
  q = q * r + 0x1.5558f2p-5f;
  q = q * r + 0x1.555492p-3f;
  q = q * r + 0x1.fffffcp-2f;
  const vf p = (q * (r * r) + r) + 1.0f;  // in this order the error is below 1 ulp without FMA too
  const vf scaled = bits<vf>(bits<vi>(p) + (bits<vi>(shifted) << 23));
  return x < splat(LOWEST) ? vf{} : scaled;
}

struct BF16 { uint16_t bits; };
struct F16 { uint16_t bits; };

inline vf widen(vf x) { return x; }

inline vf to_float(BF16, vh h) { return bits<vf>(__builtin_convertvector(h, vu) << 16); }

inline vh from_float(BF16, vf x) {
  const vu u = bits<vu>(x);
  const vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // nearest, ties to even
  const vu quiet = (u >> 16) | 0x40;
  return __builtin_convertvector(x == x ? rounded : quiet, vh);
}

#if defined(__AVX512F__) && OEKD_LANES == 16
inline vf to_float(F16, vh h) { return bits<vf>(_mm512_cvtph_ps(bits<__m256i>(h))); }
inline vh from_float(F16, vf x) {
  return bits<vh>(_mm512_cvtps_ph(bits<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__) && OEKD_LANES == 8
inline vf to_float(F16, vh h) { return bits<vf>(_mm256_cvtph_ps(bits<__m128i>(h))); }
inline vh from_float(F16, vf x) {
  return bits<vh>(_mm256_cvtps_ph(bits<__m256>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
inline vf to_float(F16, vh h) {
  const vu u = __builtin_convertvector(h, vu);
  const vu magnitude = (u & 0x7fff) << 13;
  const vf finite = bits<vf>(magnitude) * 0x1p112f;  // exponent bias 15 -> 127; subnormals become exact
  const vu value = magnitude >= 0x0f800000 ? (magnitude | 0x7f800000) : bits<vu>(finite);
  return bits<vf>(value | ((u & 0x8000) << 16));
}
inline vh from_float(F16, vf x) {
  const vu u = bits<vu>(x);
  const vu a = u & 0x7fffffff;
  const vu normal = ((a + 0xfff + ((a >> 13) & 1)) >> 13) - (112u << 10);
  const vu subnormal = bits<vu>(bits<vf>(a) + 0.5f) - 0x3f000000;  // one unit of 0.5f's last place is 2^-24
  vu h = a < 0x38800000 ? subnormal : normal;
  h = a >= 0x477ff000 ? vu{} + 0x7c00 : h;
  h = a > 0x7f800000 ? vu{} + 0x7e00 : h;
  return __builtin_convertvector(h | ((u >> 16) & 0x8000), vh);
}
#endif

inline vf load_float(const float* p) { return load<vf>(p); }
inline vf load_float(const BF16* p) { return to_float(BF16{}, load<vh>(p)); }
inline vf load_float(const F16* p) { return to_float(F16{}, load<vh>(p)); }

struct Halves { vhf low, high; };
// __builtin_convertvector would convert a pair at a time.
#if defined(__AVX512F__) && OEKD_LANES == 16
inline vd to_double(vhf x) { return bits<vd>(_mm512_cvtps_pd(bits<__m256>(x))); }
inline vhf to_single(vd x) { return bits<vhf>(_mm512_cvtpd_ps(bits<__m512d>(x))); }
#elif defined(__AVX__) && OEKD_LANES == 8
inline vd to_double(vhf x) { return bits<vd>(_mm256_cvtps_pd(bits<__m128>(x))); }
inline vhf to_single(vd x) { return bits<vhf>(_mm256_cvtpd_ps(bits<__m256d>(x))); }
#else
inline vd to_double(vhf x) { return __builtin_convertvector(x, vd); }
inline vhf to_single(vd x) { return __builtin_convertvector(x, vhf); }
#endif
inline vf to_float(vd low, vd high) { return bits<vf>(Halves{to_single(low), to_single(high)}); }

inline vf load_float(const double* p) { return to_float(load<vd>(p), load<vd>(p + LANES / 2)); }
inline void store_float(float* p, vf x) { store(p, x); }
inline void store_float(BF16* p, vf x) { store(p, from_float(BF16{}, x)); }
inline void store_float(F16* p, vf x) { store(p, from_float(F16{}, x)); }
inline void store_float(double* p, vf x) {
  const Halves parts = bits<Halves>(x);
  store(p, to_double(parts.low));
  store(p + LANES / 2, to_double(parts.high));
}

// v in the first n lanes, `other` in the rest.
inline vf first_lanes(int64_t n, vf v, float other) {
  vi lane;
  for (int i = 0; i < LANES; ++i) lane[i] = i;
  return lane < (vi{} + static_cast<int32_t>(n)) ? v : splat(other);
}

// Loads n < LANES numbers.
template <class T>
inline vf load_part(const T* p, int64_t n, float other) {
  T part[LANES] = {};
  __builtin_memcpy(part, p, n * sizeof(T));
  return first_lanes(n, load_float(part), other);
}

// Stores past the caches; p is aligned to the vector.
inline void stream(float* p, vf x) {
#if defined(__AVX512F__) && OEKD_LANES == 16
  _mm512_stream_ps(p, bits<__m512>(x));
#elif defined(__AVX__) && OEKD_LANES == 8
  _mm256_stream_ps(p, bits<__m256>(x));
#elif defined(__SSE2__) && OEKD_LANES == 4
  _mm_stream_ps(p, bits<__m128>(x));
#else
  store(p, x);
#endif
}

inline void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// While an object of this class exists, results below the smallest normal number become 0. On many processors such
// numbers are slow.
class FlushToZero {
 public:
#if defined(__SSE2__)
  FlushToZero() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | _MM_FLUSH_ZERO_ON); }
  ~FlushToZero() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

}  // namespace oekd::OEKD_ISA
