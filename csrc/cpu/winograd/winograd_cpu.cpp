// The ops of Winograd's convolution on CPU tensors: argument checks, threads, and sums over pieces of a batch.
#include "cpu/winograd/winograd_cpu.h"

#include <algorithm>
#include <array>
#include <new>
#include <string>
#include <string_view>

#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "cpu/stable/boxed.h"
#include "cpu/stable/memory.h"
#include "cpu/stable/parallel.h"
#include "cpu/winograd/winograd.h"

namespace oekd {
namespace {

// Number of pieces of the batch over which a weight gradient is summed. It does not depend on the number of threads, so
// neither does the result.
constexpr int64_t PIECES = 16;

constexpr int64_t MOST_WEIGHTS = int64_t{1} << 48;

auto scratch_floats(int64_t count) { return allocate_scratch<float>(std::max<int64_t>(count, 1) * sizeof(float)); }

WinogradShape shape_of(const Tensor& x, const Tensor& weight) {
  check_map("x", x);
  check_map("weight", weight);
  OEKD_CHECK(weight.size(1) == x.size(1) && weight.size(2) == 3 && weight.size(3) == 3, "weight: expected [K, ",
             x.size(1), ", 3, 3], got ", weight.sizes());
  OEKD_CHECK(std::min(weight.size(0), weight.size(1)) >= LEAST_WINOGRAD_CHANNELS, "weight: expected at least ",
             LEAST_WINOGRAD_CHANNELS, " channels in and out, got ", weight.sizes());
  OEKD_CHECK(x.size(2) > 0 && x.size(3) > 0, "x: expected pixels, got ", x.sizes());
  // Sizes of scratch memory, a few times as large, do not overflow below. No machine has more memory.
  if (weight.numel() > MOST_WEIGHTS) throw std::bad_alloc();
  return {x.size(1), weight.size(0), x.size(2), x.size(3)};
}

// Returns the kernels of the widest instruction set, up to `isa`, whose vectors the channels fill.
const WinogradKernel& choose_kernel(const WinogradShape& shape, std::string_view isa) {
  const Isa* chosen = &choose_isa(isa);
  while (std::min(shape.in_channels, shape.out_channels) < chosen->winograd.least_channels) ++chosen;
  return chosen->winograd;
}

Filter3x3 filter_of(const Tensor& weight) {
  return {weight.const_data_ptr<float>(), weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
}

// Computes images [first, first + count) of a convolution with a transformed filter.
void convolve(const WinogradKernel& kernel, const WinogradShape& shape, int64_t first, int64_t count, const float* x,
              const float* transformed, float* y, float* scratch) {
  kernel.convolve(shape, count, x + first * shape.in_size(), transformed, y + first * shape.out_size(), scratch);
}

Tensor forward(const Tensor& x, const Tensor& weight, std::string_view isa) {
  const WinogradShape shape = shape_of(x, weight);
  const WinogradKernel& kernel = choose_kernel(shape, isa);
  const Tensor source = channels_last(x);
  Tensor y = empty_images({x.size(0), shape.out_channels, shape.height, shape.width}, ScalarType::Float);

  const auto transformed = scratch_floats(kernel.filter_size(shape));
  kernel.transform_filter(shape, filter_of(weight), transformed.get());
  const float* const from = source.const_data_ptr<float>();
  float* const to = y.mutable_data_ptr<float>();
  parallel_for("winograd_conv", x.size(0), 1, [&](int64_t begin, int64_t end) {
    const auto scratch = scratch_floats(kernel.scratch_size(shape));
    convolve(kernel, shape, begin, end - begin, from, transformed.get(), to, scratch.get());
  });
  return y;
}

// Adds the sums of all pieces and writes them to dweight, which has any strides.
void write_weight_gradient(const WinogradShape& shape, int64_t pieces, int64_t size, float* sums, const Tensor& dweight) {
  for (int64_t i = 1; i < pieces; ++i) {
    for (int64_t j = 0; j < size; ++j) sums[j] += sums[i * size + j];
  }
  float* const to = dweight.mutable_data_ptr<float>();
  const int64_t row = size / (9 * shape.in_channels);
  for (int64_t k = 0; k < shape.out_channels; ++k) {
    for (int64_t c = 0; c < shape.in_channels; ++c) {
      for (int64_t tap = 0; tap < 9; ++tap) {
        to[k * dweight.stride(0) + c * dweight.stride(1) + tap / 3 * dweight.stride(2) + tap % 3 * dweight.stride(3)] =
            pieces ? sums[(tap * shape.in_channels + c) * row + k] : 0.0f;
      }
    }
  }
}

// Returns dx and dweight.
std::array<Tensor, 2> backward(const Tensor& dy, const Tensor& x, const Tensor& weight, bool input_grad,
                               bool weight_grad, std::string_view isa) {
  const WinogradShape shape = shape_of(x, weight);
  const WinogradShape turned{shape.out_channels, shape.in_channels, shape.height, shape.width};
  const int64_t batch = x.size(0);
  check_map("dy", dy);
  OEKD_CHECK(dy.sizes().equals({batch, shape.out_channels, shape.height, shape.width}),
             "dy: expected the output's shape [", batch, ", ", shape.out_channels, ", ", shape.height, ", ",
             shape.width, "], got ", dy.sizes());
  const WinogradKernel& kernel = choose_kernel(shape, isa);
  const Tensor upstream = channels_last(dy), source = channels_last(x);
  Tensor dx = input_grad ? empty_images(x.sizes(), ScalarType::Float) : empty({0}, ScalarType::Float);
  Tensor dweight = !weight_grad              ? empty({0}, ScalarType::Float)
                   : is_channels_last(weight) ? empty_images(weight.sizes(), ScalarType::Float)
                                              : empty(weight.sizes(), ScalarType::Float);

  const auto transformed = scratch_floats(input_grad ? kernel.filter_size(turned) : 0);
  if (input_grad) kernel.transform_filter(turned, filter_of(weight).backward(), transformed.get());
  const int64_t pieces = std::min(batch, PIECES), size = weight_grad ? kernel.sums_size(shape) : 0;
  const auto sums = scratch_floats(pieces * size);
  const float *const dy_data = upstream.const_data_ptr<float>(), *const x_data = source.const_data_ptr<float>();
  float* const dx_data = input_grad ? dx.mutable_data_ptr<float>() : nullptr;
  const int64_t needed = std::max(input_grad ? kernel.scratch_size(turned) : 0,
                                  weight_grad ? kernel.weight_scratch_size(shape) : 0);
  parallel_for("winograd_conv", pieces, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = scratch_floats(needed);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = batch * i / pieces, count = batch * (i + 1) / pieces - first;
      if (input_grad) convolve(kernel, turned, first, count, dy_data, transformed.get(), dx_data, scratch.get());
      if (weight_grad) {
        kernel.weight_gradient(shape, count, x_data + first * shape.in_size(), dy_data + first * shape.out_size(),
                               sums.get() + i * size, scratch.get());
      }
    }
  });
  if (weight_grad) write_weight_gradient(shape, pieces, size, sums.get(), dweight);
  return {dx, dweight};
}

}  // namespace

void winograd_conv(StableIValue* stack, uint64_t /*num_arguments*/, uint64_t /*num_results*/) {
  Arguments arguments(stack);
  const Tensor x = arguments.tensor(), weight = arguments.tensor();
  const std::string isa = arguments.text();
  reply(stack, forward(x, weight, isa));
}

void winograd_conv_backward(StableIValue* stack, uint64_t /*num_arguments*/, uint64_t /*num_results*/) {
  Arguments arguments(stack);
  const Tensor dy = arguments.tensor(), x = arguments.tensor(), weight = arguments.tensor();
  const bool input_grad = arguments.flag(), weight_grad = arguments.flag();
  const std::string isa = arguments.text();
  const auto [dx, dweight] = backward(dy, x, weight, input_grad, weight_grad, isa);
  reply(stack, dx, dweight);
}

}  // namespace oekd
