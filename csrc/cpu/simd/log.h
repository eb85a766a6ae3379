// Logarithms of vectors.
#pragma once

#include <math.h>

#include "cpu/simd/vec.h"

namespace oekd::OEKD_ISA {

typedef uint64_t vul __attribute__((vector_size(LANES * 4)));

inline vd splat_double(double x) { return x - vd{}; }

// log x of numbers that are 0 or normal, with an error below 1e-10 of max(1, |log x|); NaN of NaN and of numbers below 0.
// x = 2^k m with m in [sqrt(1/2), sqrt(2)): log m = 2 artanh(s) with s = (m - 1) / (m + 1), |s| < 0.172, as a series.
inline vd log_of(vd x) {
  constexpr uint64_t ROOT = 0x3fe6a09e667f3bcd, ONE = 0x3ff0000000000000, EXPONENT = 0xfff0000000000000;
  const vul u = bits<vul>(x), from_root = u - ROOT + ONE;  // k + 1023 in the exponent's bits
  const vd k = bits<vd>((from_root >> 52) | 0x4330000000000000) - (0x1p52 + 1023);
  const vd m = bits<vd>(u - (from_root & EXPONENT) + ONE);
  const vd s = (m - 1.0) / (m + 1.0), s2 = s * s;
  vd q = s2 * (1.0 / 11) + 1.0 / 9;
  q = q * s2 + 1.0 / 7;
  q = q * s2 + 1.0 / 5;
  q = q * s2 + 1.0 / 3;
  const vd log_m = s * 2.0 + s * 2.0 * (s2 * q);
  const vd other = x == vd{} ? splat_double(-INFINITY) : splat_double(NAN);
  return x > vd{} ? k * 0x1.62e42fefa39efp-1 + log_m : other;
}

// log x of normal numbers x > 0, with an error below 2 units in the last place.
// x = 2^k m with m = 1 + f in [sqrt(1/2), sqrt(2)): log m = f - f^2/2 + f^3 P(f), P of the Cephes library.
inline vf log_of_normal(vf x) {
  constexpr uint32_t ROOT = 0x3f3504f3, ONE = 0x3f800000, EXPONENT = 0xff800000;
  const vu u = bits<vu>(x), from_root = u - ROOT + ONE;  // k + 127 in the exponent's bits
  const vf k = __builtin_convertvector(bits<vi>(from_root >> 23) - 127, vf);
  const vf f = bits<vf>(u - (from_root & EXPONENT) + ONE) - 1.0f, f2 = f * f;
  vf y = f * 7.0376836292e-2f - 1.1514610310e-1f;
  y = y * f + 1.1676998740e-1f;
  y = y * f - 1.2420140846e-1f;
  y = y * f + 1.4249322787e-1f;
  y = y * f - 1.6668057665e-1f;
  y = y * f + 2.0000714765e-1f;
  y = y * f - 2.4999993993e-1f;
  y = y * f + 3.3333331174e-1f;
  y = y * f * f2 - k * 2.12194440e-4f - f2 * 0.5f;
  return k * 0.693359375f + (f + y);
}

}  // namespace oekd::OEKD_ISA
