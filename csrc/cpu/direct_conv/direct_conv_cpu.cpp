// The direct convolution ops on CPU tensors: argument checks, threads, and sums over pieces of a batch.
#include "cpu/direct_conv/direct_conv_cpu.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/direct_conv/direct_conv.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "cpu/stable/boxed.h"
#include "cpu/stable/memory.h"
#include "cpu/stable/parallel.h"

namespace oekd {
namespace {

// Number of pieces of the batch over which a weight gradient is summed. It does not depend on the number of threads, so
// neither does the result.
constexpr int64_t PIECES = 16;

ConvShape shape_of(const Tensor& x, const Tensor& weight, int64_t stride) {
  check_map("x", x);
  check_map("weight", weight);
  const int64_t side = weight.size(2);
  OEKD_CHECK(weight.size(3) == side && (side == 1 || side == 3) && weight.size(1) == x.size(1), "weight: expected [K, ",
             x.size(1), ", side, side] with side 1 or 3, got ", weight.sizes());
  OEKD_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2, got ", stride);
  OEKD_CHECK(weight.numel() > 0 && x.size(2) > 0 && x.size(3) > 0, "x: expected channels and pixels, got ", x.sizes());
  return {x.size(1), weight.size(0), x.size(2), x.size(3), side, stride};
}

// Returns x as it is if it is dense, in either layout, else as planes.
Tensor dense(const Tensor& x) { return is_channels_last(x) ? x : contiguous(x, ScalarType::Float); }

Tensor forward(const Tensor& x, const Tensor& weight, int64_t stride, std::string_view isa) {
  const ConvShape shape = shape_of(x, weight, stride);
  const ConvKernel& kernel = choose_isa(isa).direct_conv;
  const bool planar = !is_channels_last(x);
  const Tensor source = dense(x), filter = contiguous(weight, ScalarType::Float);
  Tensor y = empty({x.size(0), shape.out_channels, shape.out_height(), shape.out_width()}, ScalarType::Float);

  std::vector<float> packed(kernel.packed_size(shape));
  kernel.pack_forward(shape, filter.const_data_ptr<float>(), packed.data());
  const float* const from = source.const_data_ptr<float>();
  float* const to = y.mutable_data_ptr<float>();
  parallel_for("direct_conv", x.size(0), 1, [&](int64_t begin, int64_t end) {
    const auto scratch = allocate_scratch<float>(kernel.forward_scratch(shape) * sizeof(float));
    kernel.forward(shape, end - begin, from + begin * shape.in_size(), planar, packed.data(),
                   to + begin * shape.out_size(), scratch.get());
  });
  return y;
}

// Returns dx and dweight.
std::array<Tensor, 2> backward(const Tensor& dy, const Tensor& x, const Tensor& weight, int64_t stride, bool input_grad,
                               bool weight_grad, std::string_view isa) {
  const ConvShape shape = shape_of(x, weight, stride);
  const int64_t batch = x.size(0);
  check_map("dy", dy);
  OEKD_CHECK(dy.sizes().equals({batch, shape.out_channels, shape.out_height(), shape.out_width()}),
             "dy: expected the output's shape [", batch, ", ", shape.out_channels, ", ", shape.out_height(), ", ",
             shape.out_width(), "], got ", dy.sizes());
  const ConvKernel& kernel = choose_isa(isa).direct_conv;
  const bool planar = !is_channels_last(x);
  const Tensor upstream = contiguous(dy, ScalarType::Float), source = dense(x);
  const Tensor filter = contiguous(weight, ScalarType::Float);
  Tensor dx = !input_grad ? empty({0}, ScalarType::Float)
              : planar    ? empty(x.sizes(), ScalarType::Float)
                          : empty_images(x.sizes(), ScalarType::Float);
  Tensor dweight = weight_grad ? empty(filter.sizes(), ScalarType::Float) : empty({0}, ScalarType::Float);

  std::vector<float> packed(kernel.packed_size(shape));
  kernel.pack_backward(shape, filter.const_data_ptr<float>(), packed.data());
  const int64_t pieces = std::min(batch, PIECES), weights = weight_grad ? shape.weights() : 0;
  std::vector<float> sums(pieces * weights);
  const float *const dy_data = upstream.const_data_ptr<float>(), *const x_data = source.const_data_ptr<float>();
  float* const dx_data = input_grad ? dx.mutable_data_ptr<float>() : nullptr;
  parallel_for("direct_conv", pieces, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = allocate_scratch<float>(kernel.backward_scratch(shape) * sizeof(float));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = batch * i / pieces, count = batch * (i + 1) / pieces - first;
      kernel.backward(shape, count, dy_data + first * shape.out_size(), x_data + first * shape.in_size(), planar,
                      packed.data(), dx_data ? dx_data + first * shape.in_size() : nullptr,
                      weight_grad ? sums.data() + i * weights : nullptr, scratch.get());
    }
  });
  float* const to = dweight.mutable_data_ptr<float>();
  std::fill_n(to, weights, 0.0f);
  for (int64_t i = 0; i < pieces; ++i) {
    for (int64_t w = 0; w < weights; ++w) to[w] += sums[i * weights + w];
  }
  return {dx, dweight};
}

}  // namespace

void direct_conv(StableIValue* stack, uint64_t /*num_arguments*/, uint64_t /*num_results*/) {
  Arguments arguments(stack);
  const Tensor x = arguments.tensor(), weight = arguments.tensor();
  const int64_t stride = arguments.integer();
  const std::string isa = arguments.text();
  reply(stack, forward(x, weight, stride, isa));
}

void direct_conv_backward(StableIValue* stack, uint64_t /*num_arguments*/, uint64_t /*num_results*/) {
  Arguments arguments(stack);
  const Tensor dy = arguments.tensor(), x = arguments.tensor(), weight = arguments.tensor();
  const int64_t stride = arguments.integer();
  const bool input_grad = arguments.flag(), weight_grad = arguments.flag();
  const std::string isa = arguments.text();
  const auto [dx, dweight] = backward(dy, x, weight, stride, input_grad, weight_grad, isa);
  reply(stack, dx, dweight);
}

}  // namespace oekd
