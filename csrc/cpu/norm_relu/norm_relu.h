// Interface of the CPU kernels of BatchNorm, residual and ReLU in training. It does not use torch.
//
// Maps are dense fp32 rows [rows, channels], with one row for each position of each image (channels_last).
#pragma once

#include <cstdint>

namespace oekd {

// A table repeats the values of all channels up to `tile` floats. `tile` is a multiple of channels * lanes, so that a
// tile of rows is a whole number of vectors for any number of channels.
struct NormForward {
  int64_t channels, tile;
  const float* x;
  const float* residual;  // or null
  float* y;               // relu((x - mean) * scale + bias [+ residual])
  const float *mean, *scale, *bias;  // tables; scale = weight * rstd
};

// g = dy where the output of forward is positive, else 0. The kernel reads y to find out if there was a residual, and
// computes the output again from x if there was none.
struct NormBackward {
  int64_t channels, tile;
  const float *dy, *x;
  const float* y;  // null without a residual
  float* g;        // gradient of the residual, written by gradient_sums and read by gradient; or null
  float* dx;       // g * scale - (x - mean) * slope - offset
  const float *mean, *scale, *bias, *slope, *offset;  // tables; only gradient reads slope and offset
};

// The kernels of one instruction set. Each call processes rows [begin, end); calls for other rows may run concurrently.
struct NormReLUKernel {
  int64_t lanes;
  // Mean and sum of squared deviations, [channels] each. scratch: 3 tables.
  void (*statistics)(const float* x, int64_t channels, int64_t tile, int64_t begin, int64_t end, float* scratch,
                     double* mean, double* squares);
  void (*forward)(const NormForward&, int64_t begin, int64_t end);
  // Sum of g and sum of g * (x - mean), [channels] each. scratch: 2 tables.
  void (*gradient_sums)(const NormBackward&, int64_t begin, int64_t end, float* scratch, double* g, double* g_x);
  void (*gradient)(const NormBackward&, int64_t begin, int64_t end);
};

// avx2 and avx512 exist if OEKD_HAVE_X86_COPIES is defined.
namespace baseline { extern const NormReLUKernel norm_relu_kernel; }
namespace avx2 { extern const NormReLUKernel norm_relu_kernel; }
namespace avx512 { extern const NormReLUKernel norm_relu_kernel; }

}  // namespace oekd
