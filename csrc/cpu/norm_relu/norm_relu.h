// Interface of the CPU kernels of BatchNorm, residual and ReLU in training. It does not use torch.
//
// Maps have fp32 or bf16 elements, and all maps of a call the same type and layout: either dense rows [rows, channels],
// with one row for each position of each image (channels_last), or dense planes [images, channels, plane]. The kernels
// of planes take images where those of rows take rows, the size of a plane as `tile`, and tables of one number a
// channel. Everything else, and all arithmetic, is in fp32 or fp64.
#pragma once

#include <cstdint>

namespace oekd {

// A table repeats the values of all channels up to `tile` floats. `tile` is a multiple of channels * lanes, so that a
// tile of rows is a whole number of vectors for any number of channels.
struct NormForward {
  int64_t channels, tile;
  const void* x;
  const void* residual;  // or null
  void* y;               // relu((x - mean) * scale + bias [+ residual])
  bool relu;             // false: without relu, and without a residual
  const float *mean, *scale, *bias;  // tables; scale = weight * rstd
};

// g = dy where the output of forward is positive, else 0. The kernel reads y to find out if there was a residual, and
// computes the output again from x if there was none.
struct NormBackward {
  int64_t channels, tile;
  const void *dy, *x;
  const void* y;  // null without a residual
  void* g;        // gradient of the residual, written by gradient_sums and read by gradient; or null
  void* dx;       // g * scale - (x - mean) * slope - offset
  bool relu;      // false: g is dy, and there is no y
  const float *mean, *scale, *bias, *slope, *offset;  // tables; only gradient reads slope and offset
};

// The kernels of one instruction set, type of element and layout. Each call processes rows [begin, end); calls for
// other rows may run concurrently. scratch: in the kernels of planes, a table of sums has `lanes` numbers a channel.
struct NormReLUKernel {
  int64_t lanes;
  // Mean and sum of squared deviations, [channels] each. scratch: 3 tables.
  void (*statistics)(const void* x, int64_t channels, int64_t tile, int64_t begin, int64_t end, float* scratch,
                     double* mean, double* squares);
  void (*forward)(const NormForward&, int64_t begin, int64_t end);
  // Sum of g and sum of g * (x - mean), [channels] each. scratch: 2 tables.
  void (*gradient_sums)(const NormBackward&, int64_t begin, int64_t end, float* scratch, double* g, double* g_x);
  void (*gradient)(const NormBackward&, int64_t begin, int64_t end);
};

// All but baseline exist if OEKD_HAVE_X86_COPIES is defined. avx512bf16 is avx512 with instructions that convert to bf16.
namespace baseline { extern const NormReLUKernel norm_relu_fp32, norm_relu_bf16, norm_planes_fp32, norm_planes_bf16; }
namespace avx2 { extern const NormReLUKernel norm_relu_fp32, norm_relu_bf16, norm_planes_fp32, norm_planes_bf16; }
namespace avx512 { extern const NormReLUKernel norm_relu_fp32, norm_relu_bf16, norm_planes_fp32, norm_planes_bf16; }
namespace avx512bf16 { extern const NormReLUKernel norm_relu_bf16, norm_planes_bf16; }

}  // namespace oekd
