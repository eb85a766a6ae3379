// The direct convolution ops on CPU tensors: argument checks, threads, and sums over pieces of a batch.
#include "cpu/direct_conv/direct_conv_cpu.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "cpu/direct_conv/direct_conv.h"
#include "cpu/isa.h"
#include "cpu/memory.h"
#include "cpu/scratch.h"

namespace oekd {
namespace {

using at::Tensor;

// Number of pieces of the batch over which a weight gradient is summed. It does not depend on the number of threads, so
// neither does the result.
constexpr int64_t PIECES = 16;

void check_map(const char* name, const Tensor& map) {
  TORCH_CHECK_TYPE(map.scalar_type() == at::kFloat, name, ": expected float32, got ", map.scalar_type());
  TORCH_CHECK_VALUE(map.dim() == 4, name, ": expected four dimensions, got ", map.sizes());
  TORCH_CHECK_VALUE(map.device().is_cpu(), name, ": expected a tensor on the CPU, got ", map.device());
  check_memory(name, map);
}

ConvShape shape_of(const Tensor& x, const Tensor& weight, int64_t stride) {
  check_map("x", x);
  check_map("weight", weight);
  const int64_t side = weight.size(2);
  TORCH_CHECK_VALUE(weight.size(3) == side && (side == 1 || side == 3) && weight.size(1) == x.size(1),
                    "weight: expected [K, ", x.size(1), ", side, side] with side 1 or 3, got ", weight.sizes());
  TORCH_CHECK_VALUE(stride == 1 || stride == 2, "stride: expected 1 or 2, got ", stride);
  TORCH_CHECK_VALUE(weight.numel() > 0 && x.size(2) > 0 && x.size(3) > 0, "x: expected channels and pixels, got ",
                    x.sizes());
  return {x.size(1), weight.size(0), x.size(2), x.size(3), side, stride};
}

Tensor images(int64_t batch, int64_t channels, int64_t height, int64_t width) {
  return at::empty({batch, channels, height, width},
                   at::TensorOptions().dtype(at::kFloat).memory_format(at::MemoryFormat::ChannelsLast));
}

Tensor dense_images(const Tensor& map) { return map.contiguous(at::MemoryFormat::ChannelsLast); }

// Calls some(begin, end) for parts of [0, count) on torch's threads.
template <class Some>
void parallel(int64_t count, Some some) {
  TORCH_CHECK(torch_parallel_for(0, count, 1,
                                 [](int64_t begin, int64_t end, void* s) { (*static_cast<Some*>(s))(begin, end); },
                                 &some) == 0,
              "direct_conv: a worker thread failed (out of memory?)");
}

}  // namespace

Tensor direct_conv(const Tensor& x, const Tensor& weight, int64_t stride, std::string_view isa) {
  const ConvShape shape = shape_of(x, weight, stride);
  const ConvKernel& kernel = choose_isa(isa).direct_conv;
  const Tensor source = dense_images(x), filter = weight.contiguous();
  Tensor y = images(x.size(0), shape.out_channels, shape.out_height(), shape.out_width());

  std::vector<float> packed(kernel.packed_size(shape));
  kernel.pack_forward(shape, filter.const_data_ptr<float>(), packed.data());
  const float* const from = source.const_data_ptr<float>();
  float* const to = y.mutable_data_ptr<float>();
  parallel(x.size(0), [&](int64_t begin, int64_t end) {
    const auto scratch = allocate_scratch<float>(kernel.forward_scratch(shape) * sizeof(float));
    kernel.forward(shape, end - begin, from + begin * shape.in_size(), packed.data(), to + begin * shape.out_size(),
                   scratch.get());
  });
  return y;
}

std::tuple<Tensor, Tensor> direct_conv_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, int64_t stride,
                                                bool input_grad, bool weight_grad, std::string_view isa) {
  const ConvShape shape = shape_of(x, weight, stride);
  const int64_t batch = x.size(0);
  check_map("dy", dy);
  TORCH_CHECK_VALUE(dy.sizes() == at::IntArrayRef({batch, shape.out_channels, shape.out_height(), shape.out_width()}),
                    "dy: expected the output's shape [", batch, ", ", shape.out_channels, ", ", shape.out_height(),
                    ", ", shape.out_width(), "], got ", dy.sizes());
  const ConvKernel& kernel = choose_isa(isa).direct_conv;
  const Tensor upstream = dense_images(dy), source = dense_images(x), filter = weight.contiguous();
  Tensor dx = input_grad ? images(batch, shape.in_channels, shape.height, shape.width) : at::empty({0}, x.options());
  Tensor dweight = weight_grad ? at::zeros_like(filter) : at::empty({0}, x.options());

  std::vector<float> packed(kernel.packed_size(shape));
  kernel.pack_backward(shape, filter.const_data_ptr<float>(), packed.data());
  const int64_t pieces = std::min(batch, PIECES), weights = weight_grad ? shape.weights() : 0;
  std::vector<float> sums(pieces * weights);
  const float *const dy_data = upstream.const_data_ptr<float>(), *const x_data = source.const_data_ptr<float>();
  float* const dx_data = input_grad ? dx.mutable_data_ptr<float>() : nullptr;
  parallel(pieces, [&](int64_t begin, int64_t end) {
    const auto scratch = allocate_scratch<float>(kernel.backward_scratch(shape) * sizeof(float));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = batch * i / pieces, count = batch * (i + 1) / pieces - first;
      kernel.backward(shape, count, dy_data + first * shape.out_size(), x_data + first * shape.in_size(), packed.data(),
                      dx_data ? dx_data + first * shape.in_size() : nullptr,
                      weight_grad ? sums.data() + i * weights : nullptr, scratch.get());
    }
  });
  float* const to = dweight.mutable_data_ptr<float>();
  for (int64_t i = 0; i < pieces; ++i) {
    for (int64_t w = 0; w < weights; ++w) to[w] += sums[i * weights + w];
  }
  return {dx, dweight};
}

}  // namespace oekd
