// The op of the intermediate loss on CPU tensors: argument checks, threads, and sums over pieces of the rows.
#include "cpu/feature_kd/feature_kd_cpu.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/feature_kd/feature_kd.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "cpu/stable/boxed.h"
#include "cpu/stable/memory.h"
#include "cpu/stable/parallel.h"

namespace oekd {
namespace {

// Most pieces of the rows over which is summed. Their number does not depend on that of the threads, so neither does the
// result.
constexpr int64_t PIECES = 16;

void check_feature_map(const char* name, const Tensor& map) {
  OEKD_CHECK(map.scalar_type() == ScalarType::Float || map.scalar_type() == ScalarType::BFloat16, name,
             ": expected float32 or bfloat16, got ", map.scalar_type());
  OEKD_CHECK(map.dim() == 4 && map.size(1) > 0, name, ": expected [B, C, H, W] with C >= 1, got ", map.sizes());
  OEKD_CHECK(map.is_cpu(), name, ": expected a tensor on the CPU, got ", device_name(map));
  check_memory(name, map);
}

// Returns a part of the adapter as contiguous float32.
Tensor adapter(const char* name, const Tensor& part, int64_t outputs, int64_t inputs) {
  const ScalarType dtype = part.scalar_type();
  OEKD_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, name,
             ": expected float32, bfloat16 or float16, got ", dtype);
  const bool shaped = inputs == 0 ? part.dim() == 1
                                  : part.dim() == 2 || (part.dim() == 4 && part.size(2) == 1 && part.size(3) == 1);
  OEKD_CHECK(shaped && part.size(0) == outputs && (inputs == 0 || part.size(1) == inputs), name, ": expected [", outputs,
             inputs == 0 ? "" : text(", ", inputs), "], got ", part.sizes());
  OEKD_CHECK(part.is_cpu(), name, ": expected a tensor on the CPU, got ", device_name(part));
  check_memory(name, part);
  return contiguous(part, ScalarType::Float);
}

double scale_of(const OptionalTensor& grad_scale) {
  if (!grad_scale) return 1;
  OEKD_CHECK(grad_scale->numel() == 1, "grad_scale: expected a tensor of one element, got ", grad_scale->sizes());
  check_memory("grad_scale", *grad_scale);
  return item(*grad_scale);
}

// Whether channels are the innermost axis, of the map and of its gradient.
bool has_rows(const Tensor& map) { return map.stride(1) == 1; }

Tensor dense(const Tensor& map) { return has_rows(map) ? channels_last(map) : contiguous(map, map.scalar_type()); }

FeatureMap map_of(const Tensor& dense_map, const void* data) {
  return {const_cast<void*>(data), dense_map.size(1), !is_channels_last(dense_map)};
}

// Adds element by element the `size` floats of all pieces.
std::vector<double> added(const float* sums, int64_t pieces, int64_t size) {
  std::vector<double> total(size);
  for (int64_t i = 0; i < pieces; ++i) {
    for (int64_t j = 0; j < size; ++j) total[j] += sums[i * size + j];
  }
  return total;
}

// Returns the loss, and the gradients of map, weight and bias.
std::array<Tensor, 4> evaluate(const Tensor& map, const Tensor& teacher, const Tensor& weight, const Tensor& bias,
                               const OptionalTensor& grad_scale, bool gradients, std::string_view isa) {
  check_feature_map("map", map);
  check_feature_map("teacher", teacher);
  OEKD_CHECK(teacher.scalar_type() == map.scalar_type(), "teacher: expected the dtype of map, ", map.scalar_type(),
             ", got ", teacher.scalar_type());
  OEKD_CHECK(teacher.size(0) == map.size(0) && teacher.size(2) == map.size(2) && teacher.size(3) == map.size(3),
             "teacher: expected the batch and the pixels of map, ", map.sizes(), ", got ", teacher.sizes());
  const int64_t channels = map.size(1), teacher_channels = teacher.size(1);
  const Tensor weights = adapter("weight", weight, teacher_channels, channels);
  const Tensor biases = adapter("bias", bias, teacher_channels, 0);
  const Isa& chosen = choose_isa(isa);
  const FeatureKernel& kernel = map.scalar_type() == ScalarType::Float ? chosen.feature_kd_fp32 : chosen.feature_kd_bf16;

  const Tensor student = dense(map), target = dense(teacher);
  const int64_t rows = map.size(0) * map.size(2) * map.size(3);
  const double factor = 2 / static_cast<double>(std::max<int64_t>(1, teacher.numel())) * scale_of(grad_scale);
  Tensor map_grad = !gradients      ? empty({0}, map.scalar_type())
                    : has_rows(map) ? empty_images(map.sizes(), map.scalar_type())
                                    : empty(map.sizes(), map.scalar_type());
  const auto packed = allocate_scratch<float>(kernel.packed_size(channels, teacher_channels) * sizeof(float));
  kernel.pack(channels, teacher_channels, weights.const_data_ptr<float>(), biases.const_data_ptr<float>(), factor,
              packed.get());
  FeatureProblem problem{map_of(student, student.const_data_ptr()), map_of(target, target.const_data_ptr()),
                         map.size(2) * map.size(3), packed.get(), {}};
  if (gradients && rows > 0) problem.gradient = map_of(student, map_grad.mutable_data_ptr());

  const int64_t tiles = (rows + kernel.tile - 1) / kernel.tile, pieces = std::min(tiles, PIECES);
  const int64_t size = kernel.sums_size(channels, teacher_channels);
  const auto sums = allocate_scratch<float>(std::max<int64_t>(pieces, 1) * size * sizeof(float));
  std::vector<double> squares(pieces);
  parallel_for("feature_kd_student", pieces, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = allocate_scratch<float>(kernel.scratch_size(channels, teacher_channels) * sizeof(float));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = tiles * i / pieces * kernel.tile;
      const int64_t last = std::min(rows, tiles * (i + 1) / pieces * kernel.tile);
      squares[i] = kernel.run(problem, first, last, sums.get() + i * size, scratch.get());
    }
  });

  Tensor loss = empty({}, ScalarType::Float);
  double total = 0;
  for (const double of_piece : squares) total += of_piece;
  *loss.mutable_data_ptr<float>() = static_cast<float>(total / static_cast<double>(teacher.numel()));
  if (!gradients) return {loss, map_grad, empty({0}, weight.scalar_type()), empty({0}, bias.scalar_type())};

  const std::vector<double> summed = added(sums.get(), pieces, size);
  const int64_t distance = size / (channels + 1);
  Tensor weight_grad = empty(weight.sizes(), ScalarType::Float), bias_grad = empty(bias.sizes(), ScalarType::Float);
  float *const to_weight = weight_grad.mutable_data_ptr<float>(), *const to_bias = bias_grad.mutable_data_ptr<float>();
  for (int64_t k = 0; k < teacher_channels; ++k) {
    for (int64_t c = 0; c < channels; ++c) {
      to_weight[k * channels + c] = static_cast<float>(summed[c * distance + k] * factor);
    }
    to_bias[k] = static_cast<float>(summed[channels * distance + k] * factor);
  }
  return {loss, map_grad, contiguous(weight_grad, weight.scalar_type()), contiguous(bias_grad, bias.scalar_type())};
}

}  // namespace

void feature_kd_student(StableIValue* stack, uint64_t /*num_arguments*/, uint64_t /*num_results*/) {
  Arguments arguments(stack);
  const Tensor map = arguments.tensor(), teacher = arguments.tensor();
  const Tensor weight = arguments.tensor(), bias = arguments.tensor();
  const OptionalTensor grad_scale = arguments.optional_tensor();
  const bool gradients = arguments.flag();
  const std::string isa = arguments.text();
  const auto [loss, map_grad, weight_grad, bias_grad] =
      evaluate(map, teacher, weight, bias, grad_scale, gradients, isa);
  reply(stack, loss, map_grad, weight_grad, bias_grad);
}

}  // namespace oekd
