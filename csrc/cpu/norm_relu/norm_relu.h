// BatchNorm, residual and ReLU of a training step on a CPU: what a kernel is given. Free of torch, as ensemble_kd.h.
//
// Maps are dense rows [rows, channels] of fp32: channels_last, an image's positions one after the other.
#pragma once

#include <cstdint>

namespace oekd {

// Tables hold one number a channel, over and over: `tile` numbers in all, a multiple of channels * lanes, so that tiles
// of rows of any width are whole vectors.
struct NormForward {
  int64_t channels, tile;
  const float* x;
  const float* residual;  // or null
  float* y;               // relu((x - mean) * scale + bias [+ residual])
  const float *mean, *scale, *bias;  // tables; scale = weight * rstd
};

// g = dy where the forward pass was above 0, which y tells where there was a residual, and x where there was none.
struct NormBackward {
  int64_t channels, tile;
  const float *dy, *x;
  const float* y;  // or null: no residual
  float* g;        // written by the sums, read by the gradient: that of the residual; or null
  float* dx;       // g * scale - (x - mean) * slope - offset
  const float *mean, *scale, *bias, *slope, *offset;  // tables; slope and offset are for the gradient alone
};

// One instruction set's copy. Each call does rows [begin, end), and may run beside others that do other rows.
struct NormReLUKernel {
  int64_t lanes;
  // mean and sum of squared distances from it, [channels] each; scratch: 3 tables.
  void (*statistics)(const float* x, int64_t channels, int64_t tile, int64_t begin, int64_t end, float* scratch,
                     double* mean, double* squares);
  void (*forward)(const NormForward&, int64_t begin, int64_t end);
  // sum of g and sum of g * (x - mean), [channels] each; scratch: 2 tables.
  void (*gradient_sums)(const NormBackward&, int64_t begin, int64_t end, float* scratch, double* g, double* g_x);
  void (*gradient)(const NormBackward&, int64_t begin, int64_t end);
};

// avx2 and avx512 are linked in where OEKD_HAVE_X86_COPIES is defined.
namespace baseline { extern const NormReLUKernel norm_relu_kernel; }
namespace avx2 { extern const NormReLUKernel norm_relu_kernel; }
namespace avx512 { extern const NormReLUKernel norm_relu_kernel; }

}  // namespace oekd
