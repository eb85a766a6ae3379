// The ensemble distillation ops on CPU tensors: strides, threads, and the sums over rows. The schemas are in
// oekd_fast/losses.
#include "cpu/ensemble_kd/ensemble_kd_cpu.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/ensemble_kd/ensemble_kd.h"
#include "cpu/ensemble_kd/ensemble_kd_arguments.h"
#include "cpu/ensemble_kd/ensemble_kd_buffers.h"
#include "cpu/ensemble_kd/ensemble_kd_labels.h"
#include "cpu/ensemble_kd/ensemble_kd_lanes.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "cpu/stable/memory.h"
#include "cpu/stable/parallel.h"

namespace oekd {
namespace {

// Gradients of more bytes are written past the caches, which could not hold them.
constexpr int64_t STREAM_BYTES = int64_t{16} << 20;
// Most elements of all logits. Expanded tensors may have more, for which sizes in bytes would overflow.
constexpr int64_t MOST_ELEMENTS = int64_t{1} << 48;

void run(const KDProblem& problem, const Isa& isa, std::vector<double>& sums, std::vector<int64_t>& correct) {
  const KDKernel& kernel = suits_lanes(problem) ? isa.ensemble_kd_lanes : isa.ensemble_kd;
  const int64_t s = problem.students, width = 3 * s + 1, piece = kernel.piece(problem);
  const int64_t pieces = (problem.rows + piece - 1) / piece;
  std::vector<double> piece_sums(pieces * width);
  std::vector<int64_t> piece_correct(pieces * (s + 1));

  parallel_for("ensemble_kd", pieces, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = allocate_scratch<void>(kernel.scratch_bytes(problem));
    for (int64_t i = begin; i < end; ++i) {
      kernel.rows(problem, i * piece, std::min(problem.rows, (i + 1) * piece), scratch.get(), &piece_sums[i * width],
                  &piece_correct[i * (s + 1)]);
    }
  });

  for (int64_t i = 0; i < pieces; ++i) {
    for (int64_t k = 0; k < width; ++k) sums[k] += piece_sums[i * width + k];
    for (int64_t k = 0; k <= s; ++k) correct[k] += piece_correct[i * (s + 1) + k];
  }
}

// Divides by a number of rows or a sum of weights. Nothing counts if it is 0.
double share_of(double divisor) { return divisor > 0 ? 1.0 / divisor : 0.0; }

// A sum of terms over its divisor, 0 if none of them counts.
double mean_of(double sum, double share) { return share == 0 ? 0.0 : sum * share; }

// Tensors in which a call returns its statistics.
Statistics new_statistics(int64_t students, const Shape& shape, bool per_row) {
  const auto floats = [](Sizes sizes) { return empty(sizes, ScalarType::Float); };
  Tensor correct = empty({students + 1}, ScalarType::Long);
  if (!per_row) return {floats({}), floats({students}), floats({students}), floats({}), correct};
  const Sizes one = shape.rows;
  return {floats(one), floats({students, shape.rows}), floats({students, shape.rows}), floats(one), correct};
}

}  // namespace

Statistics ensemble_kd(const Inputs& inputs, const Outputs* outputs, std::string_view isa) {
  const std::vector<Tensor>& logits = inputs.logits;
  Settings settings = inputs.settings;
  OEKD_CHECK(!logits.empty(), "logits: expected at least one student, got none");
  const Tensor& first = logits[0];
  const Shape shape(first);
  const int64_t s = static_cast<int64_t>(logits.size()), rows = shape.rows;
  const int64_t all = s + (inputs.teacher_logits ? static_cast<int64_t>(inputs.teacher_logits->size()) : 0);
  OEKD_CHECK(first.numel() <= MOST_ELEMENTS / all, "logits: expected at most 2^48 elements of ", all,
             " students and teachers, got ", first.sizes(), " each");
  if (inputs.device_scalars) take_device_scalars(*inputs.device_scalars, settings);
  check_settings(settings, inputs.target.has_value(), outputs != nullptr);

  const std::vector<Matrix> logit_matrices = matrices("logits", logits, first, shape);
  std::vector<Matrix> grad_matrices;
  if (outputs) {
    OEKD_CHECK(outputs->grads.size() == logits.size(), "out: expected ", s, " tensors, got ", outputs->grads.size());
    grad_matrices = matrices("out", outputs->grads, first, shape);
  }

  KDProblem problem{};
  const Isa& chosen = choose_isa(isa);
  OptionalTensor weights, mixing, class_weights, row_scales, weights_grad;
  std::vector<Tensor> teacher_tensors;
  std::vector<Source> teachers;
  std::optional<Labels> labels;
  if (inputs.class_weights) {
    class_weights = class_weights_of(*inputs.class_weights, shape.classes);
    problem.class_weights = class_weights->const_data_ptr<float>();
  }
  if (inputs.target) {
    labels = labels_of(*inputs.target, shape, problem.class_weights, settings.ignore_index, chosen);
    problem.target = labels->classes.const_data_ptr<int64_t>();
    problem.ignore_index = labels->ignore_index;
    if (labels->spread) {
      problem.probabilities = &labels->probabilities;
      problem.spread = labels->spread->const_data_ptr<uint8_t>();
    }
  }
  if (static_cast<Divergence>(settings.divergence) == Divergence::decoupled) {
    OEKD_CHECK(labels && !labels->spread, "target: expected class indices with the decoupled divergence, got ",
               labels ? "probabilities" : "None");
  }
  if (inputs.ensemble_weights) {
    const Tensor& given = *inputs.ensemble_weights;
    const bool gate = given.dim() == 2 && given.size(0) == rows && given.size(1) == s;
    weights = floats_of("ensemble_weights", given, gate || (given.dim() == 1 && given.size(0) == s),
                        text("[", s, "] or [", rows, ", ", s, "]"));
    problem.ensemble_weights = weights->const_data_ptr<float>();
    problem.weights_row = gate ? s : 0;
  }
  if (inputs.teacher_logits && !inputs.teacher_logits->empty()) {
    teachers = teachers_of(*inputs.teacher_logits, shape, teacher_tensors);
    OEKD_CHECK(teachers.size() == 1 || inputs.mixing, "mixing: expected [", s, ", ", s + teachers.size(), "] with ",
               teachers.size(), " teachers, got None");
    problem.teachers = teachers.data();
    problem.num_teachers = static_cast<int64_t>(teachers.size());
    problem.targets = Targets::teacher;
  }
  if (inputs.mixing) {
    const int64_t sources = problem.num_teachers + s;
    const bool fits = inputs.mixing->dim() == 2 && inputs.mixing->size(0) == s && inputs.mixing->size(1) == sources;
    mixing = floats_of("mixing", *inputs.mixing, fits, text("[", s, ", ", sources, "]"));
    problem.mixing = mixing->const_data_ptr<float>();
    problem.targets = inputs.mix_probabilities ? Targets::probabilities : Targets::logits;
  }
  problem.with_weights_grad = outputs && outputs->weights_grad && settings.ensemble_ce_weight != 0;
  if (outputs && outputs->weights_grad) {
    const Tensor& buffer = *outputs->weights_grad;
    OEKD_CHECK(weights && buffer.sizes().equals(weights->sizes()),
               "weights_grad: expected the shape of ensemble_weights, got ", buffer.sizes());
    OEKD_CHECK(is_floating(buffer.scalar_type()), "weights_grad: expected a floating dtype, got ",
               buffer.scalar_type());
    OEKD_CHECK(buffer.is_cpu(), "weights_grad: expected a tensor on the CPU, got ", device_name(buffer));
    check_memory("weights_grad", buffer);
    weights_grad = empty(weights->sizes(), ScalarType::Float);
    float* const numbers = weights_grad->mutable_data_ptr<float>();
    std::fill_n(numbers, weights_grad->numel(), 0.0f);
    if (problem.with_weights_grad && problem.weights_row) problem.gate_grads = numbers;
  }

  double ce_share = settings.mean ? share_of(labels ? labels->weight : static_cast<double>(rows)) : 1.0;
  double kd_share = settings.mean ? share_of(static_cast<double>(labels ? labels->counted : rows)) : 1.0;
  if (inputs.num_items) {
    const double items = number_of("num_items", *inputs.num_items);
    OEKD_CHECK(items > 0 && std::isfinite(items), "num_items: expected a finite number > 0, got ", items);
    if (settings.mean) ce_share = kd_share = 1.0 / items;
  }
  problem.ce_scale = ce_share;
  problem.kd_scale = kd_share;
  if (outputs && outputs->grad_scale) {
    const Tensor& scale = *outputs->grad_scale;
    OEKD_CHECK(is_floating(scale.scalar_type()), "grad_scale: expected a floating dtype, got ", scale.scalar_type());
    if (settings.per_row && scale.numel() != 1) {
      const bool fits = scale.dim() == 1 && scale.size(0) == rows;
      row_scales = floats_of("grad_scale", scale, fits, text("one element or [", rows, "]"));
      problem.row_scales = row_scales->const_data_ptr<float>();
    } else {
      const double factor = number_of("grad_scale", scale);
      problem.ce_scale *= factor;
      problem.kd_scale *= factor;
    }
  }

  problem.students = s;
  problem.rows = rows;
  problem.classes = shape.classes;
  problem.inner = shape.inner;
  problem.dtype = scalar_of("logits", first);
  problem.logits = logit_matrices.data();
  problem.grads = outputs ? grad_matrices.data() : nullptr;
  problem.divergence = static_cast<Divergence>(settings.divergence);
  problem.beta = settings.beta;
  problem.standardise_logits = settings.standardise_logits;
  problem.temperature = settings.temperature;
  problem.ce_weight = settings.ce_weight;
  problem.kd_weight = settings.kd_weight;
  problem.ensemble_ce_weight = settings.ensemble_ce_weight;
  problem.label_smoothing = settings.label_smoothing;
  problem.stream_stores = outputs && s * first.numel() * static_cast<int64_t>(first.element_size()) >= STREAM_BYTES;

  if (outputs) {
    std::vector<NamedTensor> others;
    if (labels) others.push_back({"target", labels->given});
    if (class_weights) others.push_back({"class_weights", *class_weights});
    if (row_scales) others.push_back({"grad_scale", *row_scales});
    if (weights) others.push_back({"ensemble_weights", *weights});
    if (mixing) others.push_back({"mixing", *mixing});
    for (const Tensor& teacher : teacher_tensors) others.push_back({"teacher_logits", teacher});
    check_buffers(outputs->grads, outputs->weights_grad, logits, others);
  }

  const Statistics statistics = new_statistics(s, shape, settings.per_row);
  const auto& [loss, ce, kd, ensemble_ce, correct] = statistics;
  if (settings.per_row) {
    problem.row_statistics = {loss.mutable_data_ptr<float>(), ce.mutable_data_ptr<float>(),
                              kd.mutable_data_ptr<float>(), ensemble_ce.mutable_data_ptr<float>()};
  }
  std::vector<double> sums(3 * s + 1);
  std::vector<int64_t> counts(s + 1);
  if (rows > 0) run(problem, chosen, sums, counts);

  if (weights_grad) {
    if (!problem.weights_row) std::copy_n(sums.data() + 2 * s + 1, s, weights_grad->mutable_data_ptr<float>());
    copy(*weights_grad, *outputs->weights_grad);
  }
  std::copy(counts.begin(), counts.end(), correct.mutable_data_ptr<int64_t>());
  if (settings.per_row) return statistics;
  double total = 0;
  float *const ces = ce.mutable_data_ptr<float>(), *const kds = kd.mutable_data_ptr<float>();
  for (int64_t j = 0; j < s; ++j) {
    const double ce_j = mean_of(sums[j], ce_share), kd_j = mean_of(sums[s + j], kd_share);
    ces[j] = static_cast<float>(ce_j);
    kds[j] = static_cast<float>(kd_j);
    total += settings.kd_weight * kd_j + (inputs.target ? settings.ce_weight * ce_j : 0.0);
  }
  const double ensemble_ce_value = mean_of(sums[2 * s], ce_share);
  if (settings.ensemble_ce_weight != 0) total += settings.ensemble_ce_weight * ensemble_ce_value;
  *loss.mutable_data_ptr<float>() = static_cast<float>(total);
  *ensemble_ce.mutable_data_ptr<float>() = static_cast<float>(ensemble_ce_value);
  return statistics;
}

}  // namespace oekd
