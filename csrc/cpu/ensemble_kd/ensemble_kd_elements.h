// What the kernels do with single elements: types, exponentials, stores.
#pragma once

#include "cpu/ensemble_kd/ensemble_kd.h"
#include "cpu/simd/vec.h"

namespace oekd::OEKD_ISA {

constexpr int64_t LINE = 64;  // bytes of a cache line

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Calls `use` with a value of the C++ type of a dtype.
template <class Use>
inline auto with_dtype(Scalar dtype, const Use& use) {
  switch (dtype) {
    case Scalar::bf16: return use(BF16{});
    case Scalar::f16: return use(F16{});
    case Scalar::f64: return use(double{});
    default: return use(float{});
  }
}

inline int64_t size_of(Scalar dtype) {
  return with_dtype(dtype, []<class T>(T) { return int64_t{sizeof(T)}; });
}

// The kernels' POWER: T if e^z can be computed as (e^(z/T))^T by multiplications, else 0; APART if the softmaxes at T have
// nothing to do with those at 1, since they are those of standardised logits, or of all classes but the label's.
constexpr int APART = -1;

inline int power_of(const KDProblem& p) {
  const double t = p.temperature;
  if (p.standardise_logits || p.divergence == Divergence::decoupled) return APART;
  return t == 1 ? 1 : t == 2 ? 2 : t == 3 ? 3 : t == 4 ? 4 : 0;
}

template <int POWER>
inline vf power(vf e) {
  if constexpr (POWER == 1) return e;
  if constexpr (POWER == 2) return e * e;
  if constexpr (POWER == 3) return e * e * e;
  if constexpr (POWER == 4) return (e * e) * (e * e);
}

// d, but at most 0 where softmaxes at T are apart: the label's logit may be above the largest of the others.
template <int POWER>
inline vf capped(vf d) {
  if constexpr (POWER == APART) return d > vf{} ? vf{} : d;
  return d;
}

// e^d, where e = e^(d/T) unless softmaxes at T are apart.
template <int POWER>
inline vf exp_at_1(vf d, vf e) {
  if constexpr (POWER <= 0) return exp_nonpositive(capped<POWER>(d));
  if constexpr (POWER > 0) return power<POWER>(e);
}

// t (target - d), where t = e^(target/T). It is 0 where t is 0, although the difference may be -inf - -inf.
inline vf cross_term(vf t, vf target, vf d) { return t * (t == vf{} ? vf{} : target - d); }

// Writes n values of `src` to `dst` in its dtype, past the caches if `streamed`.
template <class T>
inline void put(T* dst, int64_t n, const float* src, bool streamed) {
  int64_t c = 0;
  if constexpr (sizeof(T) == 4) {
    if (streamed) {
      for (; c < n && reinterpret_cast<uintptr_t>(dst + c) % sizeof(vf); ++c) dst[c] = src[c];
      for (; c + LANES <= n; c += LANES) stream(dst + c, load<vf>(src + c));
    }
  }
  for (; c + LANES <= n; c += LANES) store_float(dst + c, load<vf>(src + c));
  if (c < n) {
    float part_in[LANES] = {};
    T part_out[LANES];
    __builtin_memcpy(part_in, src + c, (n - c) * sizeof(float));
    store_float(part_out, load<vf>(part_in));
    __builtin_memcpy(dst + c, part_out, (n - c) * sizeof(T));
  }
}

}  // namespace oekd::OEKD_ISA
