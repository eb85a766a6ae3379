// Convolutions of few channels on a CPU, forward and both gradients: what a kernel is given. Free of torch, as
// ensemble_kd.h.
//
// Images are dense [height, width, channels] of fp32 (channels_last). A width of 19 or 9 channels fills no vector, but a
// row of pixels does; so each image is turned into planes, one a channel, and vectors run along pixels.
#pragma once

#include <cstdint>

namespace oekd {

struct ConvShape {
  int64_t in_channels, out_channels;
  int64_t height, width;  // of the input
  int64_t side, stride;   // of the filter: 1 or 3, padded by side / 2; 1 or 2

  int64_t out_height() const { return (height + stride - 1) / stride; }
  int64_t out_width() const { return (width + stride - 1) / stride; }
  int64_t taps() const { return side * side; }
  int64_t in_size() const { return in_channels * height * width; }
  int64_t out_size() const { return out_channels * out_height() * out_width(); }
  int64_t weights() const { return out_channels * in_channels * taps(); }
};

// One instruction set's copy. weight: dense [out_channels, in_channels, side, side]. Scratch is in floats and may hold
// anything. Calls that do different images may run beside each other.
struct ConvKernel {
  int64_t (*forward_scratch)(const ConvShape&);
  int64_t (*backward_scratch)(const ConvShape&);
  int64_t (*packed_size)(const ConvShape&);  // floats of either packed form of the weights
  void (*pack_forward)(const ConvShape&, const float* weight, float* packed);
  void (*pack_backward)(const ConvShape&, const float* weight, float* packed);
  // y of `images` images.
  void (*forward)(const ConvShape&, int64_t images, const float* x, const float* packed, float* y, float* scratch);
  // dx (unless null) of `images` images, and what they add to dweight (unless null), dense as weight.
  void (*backward)(const ConvShape&, int64_t images, const float* dy, const float* x, const float* packed, float* dx,
                   float* dweight, float* scratch);
};

// avx2 and avx512 are linked in where OEKD_HAVE_X86_COPIES is defined.
namespace baseline { extern const ConvKernel direct_conv_kernel; }
namespace avx2 { extern const ConvKernel direct_conv_kernel; }
namespace avx512 { extern const ConvKernel direct_conv_kernel; }

}  // namespace oekd
