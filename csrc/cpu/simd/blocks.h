// Division of loops into blocks whose sums stay in registers.
#pragma once

#include "cpu/simd/vec.h"

namespace oekd::OEKD_ISA {

constexpr int64_t REGISTERS = LANES == 16 ? 32 : 16;  // of AVX-512, and of AVX2, SSE2 and (at least) NEON

inline int64_t parts(int64_t n, int64_t most) { return (n + most - 1) / most; }
inline int64_t round_up(int64_t n, int64_t multiple) { return parts(n, multiple) * multiple; }

// Divides n into as few parts of at most `most` as possible, equal up to rounding, and returns the largest.
inline int64_t part_of(int64_t n, int64_t most) { return parts(n, parts(n, most)); }

// Keeps a value in a register: compilers would otherwise load it again at each use.
inline vf keep(vf x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#endif
  return x;
}

// Calls run.operator()<n>(), for n from 1 to MOST.
template <int64_t MOST, class Run>
inline void with_constant(int64_t n, const Run& run) {
  if constexpr (MOST > 1) {
    if (n < MOST) return with_constant<MOST - 1>(n, run);
  }
  run.template operator()<MOST>();
}

}  // namespace oekd::OEKD_ISA
