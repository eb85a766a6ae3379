// Elements of the maps of BatchNorm, residual and ReLU: conversions, the normalisation and the mask of positive
// outputs, which the kernels of both layouts share. Compiled like vec.h.
//
// Elements are fp32 or bf16 (the template parameter T); they are converted as they are loaded and stored.
#pragma once

#include <type_traits>

#include "cpu/norm_relu/norm_relu.h"
#include "cpu/simd/vec.h"

namespace oekd::OEKD_ISA {

template <class T>
constexpr bool IS_FP32 = std::is_same_v<T, float>;

// Loads elements i, i + 1, ... of a map as W = vf or float.
template <class T, class W>
inline W load_map(const void* map, int64_t i) {
  const T* const p = static_cast<const T*>(map) + i;
  if constexpr (IS_FP32<T>) return load<W>(p);
  if constexpr (!IS_FP32<T> && IS_FP32<W>) return bits<float>(uint32_t{p->bits} << 16);
  if constexpr (!IS_FP32<T> && !IS_FP32<W>) return load_float(p);
}

// Rounds to the nearest, ties to even, with the same bits on all instruction sets, except that the instruction writes
// numbers below the smallest normal one as 0.
inline vh to_bf16(vf x) {
#ifdef __AVX512BF16__
  return bits<vh>(_mm512_cvtneps_pbh(bits<__m512>(x)));
#else
  return from_float(BF16{}, x);
#endif
}

template <class T, class W>
inline void store_map(void* map, int64_t i, W x) {
  T* const p = static_cast<T*>(map) + i;
  if constexpr (IS_FP32<T>) store(p, x);
  if constexpr (!IS_FP32<T> && IS_FP32<W>) p->bits = to_bf16(splat(x))[0];
  if constexpr (!IS_FP32<T> && !IS_FP32<W>) store(p, to_bf16(x));
}

// The least positive output in bf16. Smaller outputs are 0, so that none becomes 0 by rounding, see masked().
constexpr float LEAST_BF16 = 0x1p-126f;

template <class T, class W>
inline W relu(W z) {
  if constexpr (IS_FP32<T>) return z < W{} ? W{} : z;  // keeps NaN
  return z < W{} + LEAST_BF16 ? W{} : z;
}

// Forward and backward share this function, so that backward masks exactly the outputs that forward set to 0.
template <class W>
struct Normalise {
  template <class Tables>
  Normalise(const Tables& t, int64_t p)
      : mean(load<W>(t.mean + p)), scale(load<W>(t.scale + p)), bias(load<W>(t.bias + p)) {}
  template <class X>
  X operator()(X x) const {  // Normalise<float> serves vectors of one channel too
    return (x - mean) * scale + bias;
  }

  const W mean, scale, bias;
};

// Source of the mask of positive outputs. NONE: dy is masked already, or there is no ReLU.
enum class Mask { NONE, FROM_X, FROM_Y };

inline Mask mask_of(const NormBackward& b) { return !b.relu ? Mask::NONE : b.y ? Mask::FROM_Y : Mask::FROM_X; }

// Returns dy where the output z is positive, and else 0.
template <class T, class W>
inline W where_positive(W dy, W z) {
  if constexpr (IS_FP32<T>) return z <= W{} ? W{} : dy;  // dy passes where the output is NaN
  return z < W{} + LEAST_BF16 ? W{} : dy;
}

}  // namespace oekd::OEKD_ISA
