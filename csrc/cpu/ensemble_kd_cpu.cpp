// The ensemble distillation ops on CPU tensors: checks, layout, threads, reduction. Schemas: oekd_fast/dispatch.py.
#include "ensemble_kd_cpu.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "ensemble_kd.h"
#include "isa.h"

namespace oekd {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Statistics = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Settings {
  double temperature, ce_weight, kd_weight, label_smoothing;
  int64_t ignore_index;
  bool mean;
};

// Elements of all students that make a piece of work; pieces and their sums do not depend on the threads.
constexpr int64_t PIECE = 8192;
// Gradients beyond this are written past the caches: what is written last would push out what was written first.
constexpr int64_t STREAM_BYTES = int64_t{16} << 20;

// What a tensor gives in place of three of the numbers; here it is host memory.
void take_values(const Tensor& values, Settings& settings) {
  TORCH_CHECK_VALUE(values.dim() == 1 && values.size(0) == 3 && values.device().is_cpu(),
                    "values: expected [3] on the CPU, got ", values.sizes(), " on ", values.device());
  TORCH_CHECK_TYPE(values.scalar_type() == at::kFloat, "values: expected float32, got ", values.scalar_type());
  const float* data = values.const_data_ptr<float>();
  const int64_t stride = values.stride(0);
  settings.temperature = data[0];
  settings.ce_weight = data[stride];
  settings.kd_weight = data[2 * stride];
}

Scalar scalar_of(const Tensor& logits) {
  switch (logits.scalar_type()) {
    case at::kFloat: return Scalar::f32;
    case at::kBFloat16: return Scalar::bf16;
    case at::kHalf: return Scalar::f16;
    default:
      TORCH_CHECK_TYPE(false, "logits: the native backend takes float32, bfloat16 or float16, got ",
                       logits.scalar_type());
  }
}

std::vector<Matrix> matrices(const char* name, at::TensorList tensors, const Tensor& like) {
  std::vector<Matrix> out;
  for (const Tensor& t : tensors) {
    TORCH_CHECK_VALUE(t.dim() == 2 && t.sizes() == like.sizes(), name, ": expected [", like.sizes(), "] for each of the ",
                      "students, got ", t.sizes());
    TORCH_CHECK_TYPE(t.scalar_type() == like.scalar_type(), name, ": expected ", like.scalar_type(), ", got ",
                     t.scalar_type());
    TORCH_CHECK_VALUE(t.device().is_cpu(), name, ": expected tensors on the CPU, got ", t.device());
    out.push_back({t.data_ptr(), t.stride(0), t.stride(1)});
  }
  return out;
}

// Rows that count; every label used as an index is checked here.
int64_t count_rows(const int64_t* target, int64_t rows, int64_t classes, int64_t ignore_index) {
  int64_t counted = 0;
  for (int64_t row = 0; row < rows; ++row) {
    if (target[row] == ignore_index) continue;
    TORCH_CHECK_VALUE(target[row] >= 0 && target[row] < classes, "target: expected labels in [0, ", classes,
                      ") or ignore_index ", ignore_index, ", got ", target[row], " at row ", row);
    ++counted;
  }
  return counted;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

void run(const KDProblem& problem, const Isa& isa, std::vector<double>& sums, std::vector<int64_t>& correct) {
  const int64_t s = problem.students, width = 2 * s + 1;
  const int64_t piece = std::max<int64_t>(1, PIECE / (s * problem.classes));
  const int64_t pieces = (problem.rows + piece - 1) / piece;
  std::vector<double> piece_sums(pieces * width);
  std::vector<int64_t> piece_correct(pieces * (s + 1));

  auto work = [&](int64_t begin, int64_t end) {
    const int64_t bytes = isa.scratch_bytes(problem);
    const std::unique_ptr<void, Free> scratch(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    if (!scratch) throw std::bad_alloc();
    for (int64_t i = begin; i < end; ++i) {
      isa.rows(problem, i * piece, std::min(problem.rows, (i + 1) * piece), scratch.get(), &piece_sums[i * width],
               &piece_correct[i * (s + 1)]);
    }
  };
  // torch's own threads by its C interface: at::parallel_for in a header would need torch's OpenMP at build time.
  using Work = decltype(work);
  TORCH_CHECK(torch_parallel_for(0, pieces, 1,
                                 [](int64_t begin, int64_t end, void* w) { (*static_cast<Work*>(w))(begin, end); },
                                 &work) == 0,
              "ensemble_kd: a worker thread failed (out of memory?)");

  for (int64_t i = 0; i < pieces; ++i) {
    for (int64_t k = 0; k < width; ++k) sums[k] += piece_sums[i * width + k];
    for (int64_t k = 0; k <= s; ++k) correct[k] += piece_correct[i * (s + 1) + k];
  }
}

Statistics compute(at::TensorList logits, const OptionalTensor& target, const OptionalTensor& ensemble_weights,
                   Settings settings, const OptionalTensor& values, const OptionalTensor& grad_scale,
                   const at::TensorList* grads, std::string_view isa) {
  TORCH_CHECK_VALUE(!logits.empty(), "logits: expected at least one student, got none");
  const Tensor& first = logits[0];
  TORCH_CHECK_VALUE(first.dim() == 2 && first.size(1) > 0, "logits: expected [B, C] with C >= 1, got ", first.sizes());
  const int64_t s = static_cast<int64_t>(logits.size()), rows = first.size(0), classes = first.size(1);
  if (values) take_values(*values, settings);
  TORCH_CHECK_VALUE(settings.temperature > 0 && std::isfinite(settings.temperature),
                    "temperature: expected a finite number > 0, got ", settings.temperature);
  TORCH_CHECK_VALUE(std::isfinite(settings.ce_weight), "ce_weight: expected a finite number, got ", settings.ce_weight);
  TORCH_CHECK_VALUE(std::isfinite(settings.kd_weight), "kd_weight: expected a finite number, got ", settings.kd_weight);

  const std::vector<Matrix> logit_matrices = matrices("logits", logits, first);
  std::vector<Matrix> grad_matrices;
  if (grads) {
    TORCH_CHECK_VALUE(grads->size() == logits.size(), "out: expected ", s, " tensors, got ", grads->size());
    grad_matrices = matrices("out", *grads, first);
    for (const Tensor& t : *grads) {
      TORCH_CHECK_VALUE((t.stride(0) != 0 || t.size(0) < 2) && (t.stride(1) != 0 || t.size(1) < 2),
                        "out: expected a place of its own for every element, got strides ", t.strides());
    }
  }

  Tensor labels;
  int64_t counted = rows;
  if (target) {
    TORCH_CHECK_TYPE(target->scalar_type() == at::kLong, "target: expected int64, got ", target->scalar_type());
    TORCH_CHECK_VALUE(target->dim() == 1 && target->size(0) == rows && target->device().is_cpu(),
                      "target: expected [", rows, "] on the CPU, got ", target->sizes(), " on ", target->device());
    labels = target->contiguous();
    counted = count_rows(labels.const_data_ptr<int64_t>(), rows, classes, settings.ignore_index);
  }
  const double per_row = settings.mean ? 1.0 / static_cast<double>(std::max<int64_t>(counted, 1)) : 1.0;

  Tensor weights;
  if (ensemble_weights) {
    TORCH_CHECK_VALUE(ensemble_weights->dim() == 1 && ensemble_weights->size(0) == s &&
                          ensemble_weights->device().is_cpu(),
                      "ensemble_weights: expected [", s, "] on the CPU, got ", ensemble_weights->sizes(), " on ",
                      ensemble_weights->device());
    weights = ensemble_weights->to(at::kFloat).contiguous();
  }

  KDProblem problem{};
  problem.students = s;
  problem.rows = rows;
  problem.classes = classes;
  problem.dtype = scalar_of(first);
  problem.logits = logit_matrices.data();
  problem.grads = grads ? grad_matrices.data() : nullptr;
  problem.target = target ? labels.const_data_ptr<int64_t>() : nullptr;
  problem.ignore_index = settings.ignore_index;
  problem.ensemble_weights = ensemble_weights ? weights.const_data_ptr<float>() : nullptr;
  problem.temperature = settings.temperature;
  problem.ce_weight = settings.ce_weight;
  problem.kd_weight = settings.kd_weight;
  problem.label_smoothing = settings.label_smoothing;
  problem.grad_scale = per_row * (grad_scale ? grad_scale->item().toDouble() : 1.0);
  problem.stream_stores = grads && s * rows * classes * static_cast<int64_t>(first.element_size()) >= STREAM_BYTES;

  std::vector<double> sums(2 * s + 1);
  std::vector<int64_t> counts(s + 1);
  const Isa& chosen = choose_isa(isa);
  if (rows > 0) run(problem, chosen, sums, counts);

  const auto floats = at::TensorOptions().dtype(at::kFloat);
  Tensor loss = at::empty({}, floats), ce = at::empty({s}, floats), kd = at::empty({s}, floats);
  Tensor ensemble_ce = at::empty({}, floats), correct = at::empty({s + 1}, floats.dtype(at::kLong));
  double total = 0;
  for (int64_t j = 0; j < s; ++j) {
    const double ce_j = sums[j] * per_row, kd_j = sums[s + j] * per_row;
    ce.mutable_data_ptr<float>()[j] = static_cast<float>(ce_j);
    kd.mutable_data_ptr<float>()[j] = static_cast<float>(kd_j);
    total += settings.kd_weight * kd_j + (target ? settings.ce_weight * ce_j : 0.0);
  }
  *loss.mutable_data_ptr<float>() = static_cast<float>(total);
  *ensemble_ce.mutable_data_ptr<float>() = static_cast<float>(sums[2 * s] * per_row);
  std::copy(counts.begin(), counts.end(), correct.mutable_data_ptr<int64_t>());
  return {loss, ce, kd, ensemble_ce, correct};
}

void check_detached(bool detach_ensemble) {
  TORCH_CHECK_VALUE(detach_ensemble, "detach_ensemble: expected true of the CPU kernel, got false");
}

}  // namespace

// The value does not depend on whether gradients flow through the ensemble.
Statistics ensemble_kd_value(at::TensorList logits, const OptionalTensor& target, const OptionalTensor& ensemble_weights,
                             double temperature, double ce_weight, double kd_weight, double label_smoothing,
                             int64_t ignore_index, bool mean, bool /*detach_ensemble*/, const OptionalTensor& values,
                             std::string_view isa) {
  return compute(logits, target, ensemble_weights,
                 {temperature, ce_weight, kd_weight, label_smoothing, ignore_index, mean}, values, {}, nullptr, isa);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> ensemble_kd_value_and_grad(
    at::TensorList logits, const OptionalTensor& target, const OptionalTensor& ensemble_weights, double temperature,
    double ce_weight, double kd_weight, double label_smoothing, int64_t ignore_index, bool mean, bool detach_ensemble,
    const OptionalTensor& values, const OptionalTensor& grad_scale, std::string_view isa) {
  check_detached(detach_ensemble);
  std::vector<Tensor> grads;
  for (const Tensor& z : logits) grads.push_back(at::empty_like(z));
  const at::TensorList out(grads);
  auto [loss, ce, kd, ensemble_ce, correct] =
      compute(logits, target, ensemble_weights,
              {temperature, ce_weight, kd_weight, label_smoothing, ignore_index, mean}, values, grad_scale, &out, isa);
  return {loss, ce, kd, ensemble_ce, correct, std::move(grads)};
}

Statistics ensemble_kd_value_and_grad_out(at::TensorList logits, const OptionalTensor& target,
                                          const OptionalTensor& ensemble_weights, double temperature, double ce_weight,
                                          double kd_weight, double label_smoothing, int64_t ignore_index, bool mean,
                                          bool detach_ensemble, const OptionalTensor& values,
                                          const OptionalTensor& grad_scale, at::TensorList out, std::string_view isa) {
  check_detached(detach_ensemble);
  return compute(logits, target, ensemble_weights,
                 {temperature, ce_weight, kd_weight, label_smoothing, ignore_index, mean}, values, grad_scale, &out,
                 isa);
}

}  // namespace oekd
