// Interface of the CPU kernels of convolutions with few channels: forward and both gradients. It does not use torch.
//
// 19 or 9 channels do not fill whole vectors, but rows of pixels do. The kernels therefore compute with one plane for
// each channel, and vectors run along pixels. Outputs are dense fp32 images of planes, [channels, height, width], and so
// are their gradients. Inputs and their gradients are either the same, or images of pixels, [height, width, channels]
// (channels_last), which are converted.
#pragma once

#include <cstdint>

namespace oekd {

struct ConvShape {
  int64_t in_channels, out_channels;
  int64_t height, width;  // size of the input
  int64_t side, stride;   // side of the filter, 1 or 3, with padding side / 2; stride 1 or 2

  int64_t out_height() const { return (height + stride - 1) / stride; }
  int64_t out_width() const { return (width + stride - 1) / stride; }
  int64_t taps() const { return side * side; }
  int64_t in_size() const { return in_channels * height * width; }
  int64_t out_size() const { return out_channels * out_height() * out_width(); }
  int64_t weights() const { return out_channels * in_channels * taps(); }
};

// The kernels of one instruction set. weight is dense [out_channels, in_channels, side, side]. Scratch memory is in
// floats, aligned to a cache line, and needs no initialisation. Calls for different images may run concurrently.
struct ConvKernel {
  int64_t (*forward_scratch)(const ConvShape&);
  int64_t (*backward_scratch)(const ConvShape&);
  int64_t (*packed_size)(const ConvShape&);  // floats of the packed weights, either form
  void (*pack_forward)(const ConvShape&, const float* weight, float* packed);
  void (*pack_backward)(const ConvShape&, const float* weight, float* packed);
  // Computes y of `images` images. planar: whether x has planes.
  void (*forward)(const ConvShape&, int64_t images, const float* x, bool planar, const float* packed, float* y,
                  float* scratch);
  // Computes dx of `images` images and adds their gradient to dweight, dense as weight. Either may be null. planar:
  // whether x and dx have planes.
  void (*backward)(const ConvShape&, int64_t images, const float* dy, const float* x, bool planar, const float* packed,
                   float* dx, float* dweight, float* scratch);
};

// The copies for AVX2 and AVX-512 exist if OEKD_HAVE_X86_COPIES is defined.
namespace baseline { extern const ConvKernel direct_conv_kernel; }
namespace avx2 { extern const ConvKernel direct_conv_kernel; }
namespace avx512 { extern const ConvKernel direct_conv_kernel; }

}  // namespace oekd
