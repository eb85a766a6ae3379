// Interface of the CPU kernels of 3x3 convolutions with stride 1 and padding 1 by Winograd's minimal filtering: forward
// and both gradients. It does not use torch.
//
// F(2x2, 3x3) of Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), needs 16
// multiplications for 2 x 2 outputs instead of 36. Maps are dense fp32 images of pixels, [height, width, channels]
// (channels_last). Vectors run along the channels.
#pragma once

#include <cstdint>

namespace oekd {

// Least number of channels of each map, for any kernel.
constexpr int64_t LEAST_WINOGRAD_CHANNELS = 8;

struct WinogradShape {
  int64_t in_channels, out_channels;
  int64_t height, width;

  int64_t tiles_high() const { return (height + 1) / 2; }
  int64_t tiles_wide() const { return (width + 1) / 2; }
  int64_t tiles() const { return tiles_high() * tiles_wide(); }  // of an image; each has 2 x 2 outputs
  int64_t in_size() const { return in_channels * height * width; }
  int64_t out_size() const { return out_channels * height * width; }
};

// A filter, with the distance between its elements along each dimension.
struct Filter3x3 {
  const float* data;
  int64_t along_output, along_input, along_row, along_column;

  // The filter of the gradient with respect to the input: turned by 180 degrees, from outputs to inputs.
  Filter3x3 backward() const {
    return {data + 2 * (along_row + along_column), along_input, along_output, -along_row, -along_column};
  }
};

// The kernels of one instruction set. Sizes are in floats. Scratch memory is aligned to a cache line and needs no
// initialisation. Calls for different images may run concurrently, and the outputs of an image do not depend on the
// others.
struct WinogradKernel {
  int64_t least_channels;  // of each map: one vector
  int64_t (*filter_size)(const WinogradShape&);
  int64_t (*scratch_size)(const WinogradShape&);
  int64_t (*sums_size)(const WinogradShape&);
  int64_t (*weight_scratch_size)(const WinogradShape&);
  void (*transform_filter)(const WinogradShape&, const Filter3x3&, float* transformed);
  // Computes y of `images` images.
  void (*convolve)(const WinogradShape&, int64_t images, const float* x, const float* transformed, float* y,
                   float* scratch);
  // Computes the sums over `images` images of the gradient of the filter; `sums` is [3, 3, in_channels, n] with the
  // outputs at the beginning of n.
  void (*weight_gradient)(const WinogradShape&, int64_t images, const float* x, const float* dy, float* sums,
                          float* scratch);
};

// The copies for AVX2 and AVX-512 exist if OEKD_HAVE_X86_COPIES is defined.
namespace baseline { extern const WinogradKernel winograd_kernel; }
namespace avx2 { extern const WinogradKernel winograd_kernel; }
namespace avx512 { extern const WinogradKernel winograd_kernel; }

}  // namespace oekd
