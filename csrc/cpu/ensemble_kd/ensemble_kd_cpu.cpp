// The ensemble distillation ops on CPU tensors: argument checks, strides, threads, and the sums over rows. The schemas
// are in oekd_fast/losses.
#include "cpu/ensemble_kd/ensemble_kd_cpu.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cpu/ensemble_kd/ensemble_kd.h"
#include "cpu/ensemble_kd/ensemble_kd_buffers.h"
#include "cpu/isa.h"
#include "cpu/memory.h"

namespace oekd {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalTensors = std::optional<at::TensorList>;
using Statistics = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Settings {
  double temperature, ce_weight, kd_weight, label_smoothing;
  int64_t ignore_index;
  bool mean;
  double ensemble_ce_weight;
};

struct Inputs {
  at::TensorList logits;
  const OptionalTensor& target;
  const OptionalTensor& ensemble_weights;
  const OptionalTensors& teacher_logits;
  const OptionalTensor& mixing;
  bool mix_probabilities;
};

// Gradients that a call writes beside the statistics, and the factor they are multiplied by.
struct Outputs {
  const OptionalTensor& grad_scale;
  at::TensorList grads;
  const OptionalTensor& weights_grad;
};

// Elements of all students in one piece of work. The pieces, and so the order of the sums, do not depend on the number
// of threads.
constexpr int64_t PIECE = 8192;
// Gradients of more bytes are written past the caches, which could not hold them.
constexpr int64_t STREAM_BYTES = int64_t{16} << 20;
// Most elements of all logits. Expanded tensors may have more, for which sizes in bytes would overflow.
constexpr int64_t MOST_ELEMENTS = int64_t{1} << 48;

// Replaces the first three or four numbers of the settings by those in a tensor, which is in host memory.
void take_device_scalars(const Tensor& scalars, Settings& settings) {
  TORCH_CHECK_VALUE(scalars.dim() == 1 && (scalars.size(0) == 3 || scalars.size(0) == 4) && scalars.device().is_cpu(),
                    "device_scalars: expected [3] or [4] on the CPU, got ", scalars.sizes(), " on ", scalars.device());
  TORCH_CHECK_TYPE(scalars.scalar_type() == at::kFloat, "device_scalars: expected float32, got ",
                   scalars.scalar_type());
  check_memory("device_scalars", scalars);
  const float* data = scalars.const_data_ptr<float>();
  const int64_t stride = scalars.stride(0);
  settings.temperature = data[0];
  settings.ce_weight = data[stride];
  settings.kd_weight = data[2 * stride];
  if (scalars.size(0) == 4) settings.ensemble_ce_weight = data[3 * stride];
}

void check_settings(const Settings& settings, bool has_target) {
  TORCH_CHECK_VALUE(settings.temperature > 0 && std::isfinite(settings.temperature),
                    "temperature: expected a finite number > 0, got ", settings.temperature);
  TORCH_CHECK_VALUE(std::isfinite(settings.ce_weight), "ce_weight: expected a finite number, got ", settings.ce_weight);
  TORCH_CHECK_VALUE(std::isfinite(settings.kd_weight), "kd_weight: expected a finite number, got ", settings.kd_weight);
  TORCH_CHECK_VALUE(std::isfinite(settings.ensemble_ce_weight), "ensemble_ce_weight: expected a finite number, got ",
                    settings.ensemble_ce_weight);
  TORCH_CHECK_VALUE(settings.label_smoothing >= 0 && settings.label_smoothing <= 1,
                    "label_smoothing: expected a number in [0, 1], got ", settings.label_smoothing);
  TORCH_CHECK_VALUE(has_target || settings.ensemble_ce_weight == 0,
                    "target: expected int64 [B] with ensemble_ce_weight ", settings.ensemble_ce_weight, ", got None");
}

Scalar scalar_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return Scalar::f32;
    case at::kBFloat16: return Scalar::bf16;
    case at::kHalf: return Scalar::f16;
    default:
      TORCH_CHECK_TYPE(false, name, ": expected float32, bfloat16 or float16 with the native backend, got ",
                       tensor.scalar_type());
  }
}

std::vector<Matrix> matrices(const char* name, at::TensorList tensors, const Tensor& like) {
  std::vector<Matrix> out;
  for (const Tensor& t : tensors) {
    TORCH_CHECK_VALUE(t.dim() == 2 && t.sizes() == like.sizes(), name, ": expected ", like.sizes(),
                      " for each student, got ", t.sizes());
    TORCH_CHECK_TYPE(t.scalar_type() == like.scalar_type(), name, ": expected ", like.scalar_type(), ", got ",
                     t.scalar_type());
    TORCH_CHECK_VALUE(t.device().is_cpu(), name, ": expected tensors on the CPU, got ", t.device());
    check_memory(name, t);
    out.push_back({t.data_ptr(), t.stride(0), t.stride(1)});
  }
  return out;
}

// Counts the rows that are not ignored, and checks their labels.
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

// Returns the logits of the external teachers. `kept` holds the tensors that they point into.
std::vector<Teacher> teachers_of(at::TensorList tensors, const Tensor& like, std::vector<Tensor>& kept) {
  std::vector<Teacher> out;
  for (const Tensor& given : tensors) {
    TORCH_CHECK_VALUE(given.sizes() == like.sizes() && given.device().is_cpu(), "teacher_logits: expected ",
                      like.sizes(), " on the CPU, got ", given.sizes(), " on ", given.device());
    check_memory("teacher_logits", given);
    // The dispatcher evaluates lazy negations in all arguments but an optional list of tensors.
    const bool wide = given.scalar_type() == at::kDouble;
    const Tensor& t = kept.emplace_back(wide ? given.to(at::kFloat) : given.resolve_neg());
    out.push_back({{const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1)}, scalar_of("teacher_logits", t)});
  }
  return out;
}

// Returns a small tensor as contiguous float32, after checks; `shapes` names the shapes that are expected.
Tensor floats_of(const char* name, const Tensor& tensor, bool expected, const std::string& shapes) {
  TORCH_CHECK_VALUE(expected && tensor.device().is_cpu(), name, ": expected ", shapes, " on the CPU, got ",
                    tensor.sizes(), " on ", tensor.device());
  TORCH_CHECK_TYPE(tensor.is_floating_point(), name, ": expected a floating dtype, got ", tensor.scalar_type());
  check_memory(name, tensor);
  return tensor.to(at::kFloat).contiguous();
}

double number_of(const OptionalTensor& grad_scale) {
  if (!grad_scale) return 1.0;
  TORCH_CHECK_VALUE(grad_scale->numel() == 1 && grad_scale->device().is_cpu(),
                    "grad_scale: expected one element on the CPU, got ", grad_scale->sizes(), " on ",
                    grad_scale->device());
  TORCH_CHECK_TYPE(grad_scale->is_floating_point(), "grad_scale: expected a floating dtype, got ",
                   grad_scale->scalar_type());
  check_memory("grad_scale", *grad_scale);
  return grad_scale->item<double>();
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

void run(const KDProblem& problem, const Isa& isa, std::vector<double>& sums, std::vector<int64_t>& correct) {
  const int64_t s = problem.students, width = 3 * s + 1;
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
  // The C interface to torch's threads: at::parallel_for is inline and would need torch's OpenMP at build time.
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

// Computes the statistics, and the gradients if `outputs` is not null.
Statistics compute(const Inputs& inputs, Settings settings, const OptionalTensor& device_scalars,
                   const Outputs* outputs, std::string_view isa) {
  const at::TensorList logits = inputs.logits;
  const OptionalTensor& target = inputs.target;
  TORCH_CHECK_VALUE(!logits.empty(), "logits: expected at least one student, got none");
  const Tensor& first = logits[0];
  TORCH_CHECK_VALUE(first.dim() == 2 && first.size(1) > 0, "logits: expected [B, C] with C >= 1, got ", first.sizes());
  const int64_t s = static_cast<int64_t>(logits.size()), rows = first.size(0), classes = first.size(1);
  const int64_t all = s + (inputs.teacher_logits ? static_cast<int64_t>(inputs.teacher_logits->size()) : 0);
  TORCH_CHECK_VALUE(first.numel() <= MOST_ELEMENTS / all, "logits: expected at most 2^48 elements of ", all,
                    " students and teachers, got ", first.sizes(), " each");
  if (device_scalars) take_device_scalars(*device_scalars, settings);
  check_settings(settings, target.has_value());

  const std::vector<Matrix> logit_matrices = matrices("logits", logits, first);
  std::vector<Matrix> grad_matrices;
  if (outputs) {
    TORCH_CHECK_VALUE(outputs->grads.size() == logits.size(), "out: expected ", s, " tensors, got ",
                      outputs->grads.size());
    grad_matrices = matrices("out", outputs->grads, first);
  }

  Tensor labels;
  int64_t counted = rows;
  if (target) {
    TORCH_CHECK_TYPE(target->scalar_type() == at::kLong, "target: expected int64, got ", target->scalar_type());
    TORCH_CHECK_VALUE(target->dim() == 1 && target->size(0) == rows && target->device().is_cpu(),
                      "target: expected [", rows, "] on the CPU, got ", target->sizes(), " on ", target->device());
    check_memory("target", *target);
    labels = target->contiguous();
    counted = count_rows(labels.const_data_ptr<int64_t>(), rows, classes, settings.ignore_index);
  }
  const double per_row = settings.mean ? 1.0 / static_cast<double>(std::max<int64_t>(counted, 1)) : 1.0;

  KDProblem problem{};
  Tensor weights, mixing;
  std::vector<Tensor> teacher_tensors;
  std::vector<Teacher> teachers;
  if (inputs.ensemble_weights) {
    const Tensor& given = *inputs.ensemble_weights;
    const bool gate = given.dim() == 2 && given.size(0) == rows && given.size(1) == s;
    weights = floats_of("ensemble_weights", given, gate || (given.dim() == 1 && given.size(0) == s),
                        c10::str("[", s, "] or [", rows, ", ", s, "]"));
    problem.ensemble_weights = weights.const_data_ptr<float>();
    problem.weights_row = gate ? s : 0;
  }
  if (inputs.teacher_logits && !inputs.teacher_logits->empty()) {
    teachers = teachers_of(*inputs.teacher_logits, first, teacher_tensors);
    TORCH_CHECK_VALUE(teachers.size() == 1 || inputs.mixing, "mixing: expected [", s, ", ", s + teachers.size(),
                      "] with ", teachers.size(), " teachers, got None");
    problem.teachers = teachers.data();
    problem.num_teachers = static_cast<int64_t>(teachers.size());
    problem.targets = Targets::teacher;
  }
  if (inputs.mixing) {
    const int64_t sources = problem.num_teachers + s;
    const bool fits = inputs.mixing->dim() == 2 && inputs.mixing->size(0) == s && inputs.mixing->size(1) == sources;
    mixing = floats_of("mixing", *inputs.mixing, fits, c10::str("[", s, ", ", sources, "]"));
    problem.mixing = mixing.const_data_ptr<float>();
    problem.targets = inputs.mix_probabilities ? Targets::probabilities : Targets::logits;
  }
  Tensor weights_grad;
  problem.with_weights_grad = outputs && outputs->weights_grad && settings.ensemble_ce_weight != 0;
  if (outputs && outputs->weights_grad) {
    TORCH_CHECK_VALUE(inputs.ensemble_weights && outputs->weights_grad->sizes() == weights.sizes(),
                      "weights_grad: expected the shape of ensemble_weights, got ", outputs->weights_grad->sizes());
    TORCH_CHECK_TYPE(outputs->weights_grad->is_floating_point(), "weights_grad: expected a floating dtype, got ",
                     outputs->weights_grad->scalar_type());
    TORCH_CHECK_VALUE(outputs->weights_grad->device().is_cpu(), "weights_grad: expected a tensor on the CPU, got ",
                      outputs->weights_grad->device());
    check_memory("weights_grad", *outputs->weights_grad);
    weights_grad = at::zeros(weights.sizes(), weights.options());
    if (problem.with_weights_grad && problem.weights_row) problem.gate_grads = weights_grad.mutable_data_ptr<float>();
  }

  problem.students = s;
  problem.rows = rows;
  problem.classes = classes;
  problem.dtype = scalar_of("logits", first);
  problem.logits = logit_matrices.data();
  problem.grads = outputs ? grad_matrices.data() : nullptr;
  problem.target = target ? labels.const_data_ptr<int64_t>() : nullptr;
  problem.ignore_index = settings.ignore_index;
  problem.temperature = settings.temperature;
  problem.ce_weight = settings.ce_weight;
  problem.kd_weight = settings.kd_weight;
  problem.ensemble_ce_weight = settings.ensemble_ce_weight;
  problem.label_smoothing = settings.label_smoothing;
  problem.grad_scale = outputs ? per_row * number_of(outputs->grad_scale) : per_row;
  problem.stream_stores = outputs && s * first.numel() * static_cast<int64_t>(first.element_size()) >= STREAM_BYTES;

  if (outputs) {
    std::vector<NamedTensor> others;
    if (target) others.push_back({"target", labels});
    if (weights.defined()) others.push_back({"ensemble_weights", weights});
    if (mixing.defined()) others.push_back({"mixing", mixing});
    for (const Tensor& teacher : teacher_tensors) others.push_back({"teacher_logits", teacher});
    check_buffers(outputs->grads, outputs->weights_grad, logits, others);
  }

  std::vector<double> sums(3 * s + 1);
  std::vector<int64_t> counts(s + 1);
  const Isa& chosen = choose_isa(isa);
  if (rows > 0) run(problem, chosen, sums, counts);

  if (weights_grad.defined()) {
    if (!problem.weights_row) std::copy_n(sums.data() + 2 * s + 1, s, weights_grad.mutable_data_ptr<float>());
    outputs->weights_grad->copy_(weights_grad);
  }
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
  const double ensemble_ce_value = sums[2 * s] * per_row;
  if (settings.ensemble_ce_weight != 0) total += settings.ensemble_ce_weight * ensemble_ce_value;
  *loss.mutable_data_ptr<float>() = static_cast<float>(total);
  *ensemble_ce.mutable_data_ptr<float>() = static_cast<float>(ensemble_ce_value);
  std::copy(counts.begin(), counts.end(), correct.mutable_data_ptr<int64_t>());
  return {loss, ce, kd, ensemble_ce, correct};
}

void check_detached(bool detach_ensemble) {
  TORCH_CHECK_VALUE(detach_ensemble, "detach_ensemble: expected True with the native backend, got False");
}

// The kernel does not compute these options.
void check_supported(const OptionalTensor& class_weights, const OptionalTensor& num_items, bool per_row,
                     int64_t divergence) {
  TORCH_CHECK_VALUE(!class_weights, "weight: expected None with the native backend, got a tensor");
  TORCH_CHECK_VALUE(!num_items, "num_items: expected None with the native backend, got a tensor");
  TORCH_CHECK_VALUE(!per_row, "reduction: expected 'mean' or 'sum' with the native backend, got 'none'");
  TORCH_CHECK_VALUE(divergence == 0, "divergence: expected 'forward' with the native backend, got ", divergence);
}

}  // namespace

// The value does not depend on detach_ensemble.
Statistics ensemble_kd_value(at::TensorList logits, const OptionalTensor& target,
                             const OptionalTensor& ensemble_weights, double temperature, double ce_weight,
                             double kd_weight, double label_smoothing, int64_t ignore_index, bool mean,
                             bool /*detach_ensemble*/, const OptionalTensor& device_scalars, double ensemble_ce_weight,
                             const OptionalTensors& teacher_logits, const OptionalTensor& mixing,
                             bool mix_probabilities, const OptionalTensor& class_weights,
                             const OptionalTensor& num_items, bool per_row, int64_t divergence, double /*beta*/,
                             std::string_view isa) {
  check_supported(class_weights, num_items, per_row, divergence);
  return compute({logits, target, ensemble_weights, teacher_logits, mixing, mix_probabilities},
                 {temperature, ce_weight, kd_weight, label_smoothing, ignore_index, mean, ensemble_ce_weight},
                 device_scalars, nullptr, isa);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> ensemble_kd_value_and_grad(
    at::TensorList logits, const OptionalTensor& target, const OptionalTensor& ensemble_weights, double temperature,
    double ce_weight, double kd_weight, double label_smoothing, int64_t ignore_index, bool mean, bool detach_ensemble,
    const OptionalTensor& device_scalars, double ensemble_ce_weight, const OptionalTensors& teacher_logits,
    const OptionalTensor& mixing, bool mix_probabilities, const OptionalTensor& class_weights,
    const OptionalTensor& num_items, bool per_row, int64_t divergence, double beta, const OptionalTensor& grad_scale,
    std::string_view isa) {
  std::vector<Tensor> grads;
  for (const Tensor& z : logits) grads.push_back(at::empty_like(z));
  auto [loss, ce, kd, ensemble_ce, correct] = ensemble_kd_value_and_grad_out(
      logits, target, ensemble_weights, temperature, ce_weight, kd_weight, label_smoothing, ignore_index, mean,
      detach_ensemble, device_scalars, ensemble_ce_weight, teacher_logits, mixing, mix_probabilities, class_weights,
      num_items, per_row, divergence, beta, grad_scale, grads, std::nullopt, isa);
  return {loss, ce, kd, ensemble_ce, correct, std::move(grads)};
}

Statistics ensemble_kd_value_and_grad_out(at::TensorList logits, const OptionalTensor& target,
                                          const OptionalTensor& ensemble_weights, double temperature, double ce_weight,
                                          double kd_weight, double label_smoothing, int64_t ignore_index, bool mean,
                                          bool detach_ensemble, const OptionalTensor& device_scalars,
                                          double ensemble_ce_weight, const OptionalTensors& teacher_logits,
                                          const OptionalTensor& mixing, bool mix_probabilities,
                                          const OptionalTensor& class_weights, const OptionalTensor& num_items,
                                          bool per_row, int64_t divergence, double /*beta*/,
                                          const OptionalTensor& grad_scale, at::TensorList out,
                                          const OptionalTensor& weights_grad, std::string_view isa) {
  check_detached(detach_ensemble);
  const Outputs outputs{grad_scale, out, weights_grad};
  check_supported(class_weights, num_items, per_row, divergence);
  return compute({logits, target, ensemble_weights, teacher_logits, mixing, mix_probabilities},
                 {temperature, ce_weight, kd_weight, label_smoothing, ignore_index, mean, ensemble_ce_weight},
                 device_scalars, &outputs, isa);
}

}  // namespace oekd
