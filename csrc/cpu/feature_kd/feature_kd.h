// Interface of the CPU kernels of the intermediate loss of one student after one block. It does not use torch.
//
//   gap = A f + b - f0,   loss = mean gap^2,   df = 2/n A^T gap,   dA = 2/n sum gap f^T,   db = 2/n sum gap
//
// f is the student's map, f0 the pseudo teacher's, n the number of its elements; A and b are the adapter. A row is one
// position of one image, with all its channels. Gaps exist for a few rows at a time, in the cache.
#pragma once

#include <cstdint>

namespace oekd {

// A dense map: rows of channels (channels_last), or planes [channels, pixels] for each image.
struct FeatureMap {
  void* data;
  int64_t channels;
  bool planar;
};

struct FeatureProblem {
  FeatureMap student, teacher;
  int64_t pixels;       // of an image
  const float* packed;  // the adapter, as `pack` writes it
  FeatureMap gradient;  // of the student's map; its data is null if only the loss is wanted
};

// The kernels of one instruction set and type of elements. Sizes are in floats. Memory is aligned to cache lines and
// needs no initialisation. Calls for different rows may run concurrently.
struct FeatureKernel {
  int64_t tile;  // rows that are processed at a time
  int64_t (*packed_size)(int64_t channels, int64_t teacher_channels);
  int64_t (*sums_size)(int64_t channels, int64_t teacher_channels);
  int64_t (*scratch_size)(int64_t channels, int64_t teacher_channels);
  // weight [teacher_channels, channels] and bias [teacher_channels]; `factor` multiplies the gradient of the map.
  void (*pack)(int64_t channels, int64_t teacher_channels, const float* weight, const float* bias, double factor,
               float* packed);
  // Returns the sum of the squared gaps of rows [begin, end), and writes the gradient of the map. `sums` is
  // [channels + 1, n] with the teacher's channels at the beginning of n: the sums of gap f^T, transposed, and of gap.
  double (*run)(const FeatureProblem&, int64_t begin, int64_t end, float* sums, float* scratch);
};

// The copies for AVX2 and AVX-512 exist if OEKD_HAVE_X86_COPIES is defined.
namespace baseline { extern const FeatureKernel feature_kd_fp32, feature_kd_bf16; }
namespace avx2 { extern const FeatureKernel feature_kd_fp32, feature_kd_bf16; }
namespace avx512 { extern const FeatureKernel feature_kd_fp32, feature_kd_bf16; }

}  // namespace oekd
