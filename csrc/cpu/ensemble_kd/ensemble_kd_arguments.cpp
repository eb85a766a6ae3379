#include "cpu/ensemble_kd/ensemble_kd_arguments.h"

#include <algorithm>
#include <cmath>

namespace oekd {

void take_device_scalars(const Tensor& scalars, Settings& settings) {
  OEKD_CHECK(scalars.dim() == 1 && (scalars.size(0) == 3 || scalars.size(0) == 4) && scalars.is_cpu(),
             "device_scalars: expected [3] or [4] on the CPU, got ", scalars.sizes(), " on ", device_name(scalars));
  OEKD_CHECK(scalars.scalar_type() == ScalarType::Float, "device_scalars: expected float32, got ",
             scalars.scalar_type());
  check_memory("device_scalars", scalars);
  const float* data = scalars.const_data_ptr<float>();
  const int64_t stride = scalars.stride(0);
  settings.temperature = data[0];
  settings.ce_weight = data[stride];
  settings.kd_weight = data[2 * stride];
  if (scalars.size(0) == 4) settings.ensemble_ce_weight = data[3 * stride];
}

void check_settings(const Settings& settings, bool has_target, bool with_grads) {
  OEKD_CHECK(settings.temperature > 0 && std::isfinite(settings.temperature),
             "temperature: expected a finite number > 0, got ", settings.temperature);
  OEKD_CHECK(std::isfinite(settings.ce_weight), "ce_weight: expected a finite number, got ", settings.ce_weight);
  OEKD_CHECK(std::isfinite(settings.kd_weight), "kd_weight: expected a finite number, got ", settings.kd_weight);
  OEKD_CHECK(std::isfinite(settings.ensemble_ce_weight), "ensemble_ce_weight: expected a finite number, got ",
             settings.ensemble_ce_weight);
  OEKD_CHECK(settings.label_smoothing >= 0 && settings.label_smoothing <= 1,
             "label_smoothing: expected a number in [0, 1], got ", settings.label_smoothing);
  OEKD_CHECK(has_target || settings.ensemble_ce_weight == 0, "target: expected labels with ensemble_ce_weight ",
             settings.ensemble_ce_weight, ", got None");
  // The value does not depend on detach_ensemble.
  OEKD_CHECK(settings.detach_ensemble || !with_grads,
             "detach_ensemble: expected True with the native backend, got False");
  OEKD_CHECK(settings.divergence >= 0 && settings.divergence <= 3, "divergence: expected 0, 1, 2 or 3, got ",
             settings.divergence);
  if (static_cast<Divergence>(settings.divergence) == Divergence::decoupled) {
    OEKD_CHECK(settings.beta >= 0 && std::isfinite(settings.beta), "beta: expected a finite number >= 0, got ",
               settings.beta);
  } else {
    OEKD_CHECK(settings.beta > 0 && settings.beta < 1, "beta: expected a number in (0, 1), got ", settings.beta);
  }
  OEKD_CHECK(!(settings.mean && settings.per_row), "per_row: expected False with mean, got True");
}

Shape::Shape(const Tensor& first) : sizes(first.sizes()) {
  OEKD_CHECK((first.dim() == 2 || first.dim() == 3) && first.size(1) > 0,
             "logits: expected [B, C] or [O, C, I] with C >= 1, got ", first.sizes());
  classes = first.size(1);
  by_row.push_back(first.size(0));
  if (first.dim() == 3) by_row.push_back(first.size(2));
  rows = by_row.front() * by_row.back();
  if (first.dim() == 2) rows = by_row.front();
  // Rows of one dimension are the inner ones, whichever dimension they have.
  inner = by_row.back() == 1 ? by_row.front() : by_row.back();
}

Matrix Shape::matrix(const Tensor& t) const {
  void* data = const_cast<void*>(t.const_data_ptr());
  // The stride of a single class is arbitrary.
  const int64_t class_stride = classes == 1 ? 1 : t.stride(1);
  if (by_row.back() == inner && by_row.size() == 2) return {data, t.stride(0), class_stride, t.stride(2)};
  return {data, 0, class_stride, t.stride(0)};
}

Scalar scalar_of(const char* name, const Tensor& tensor) {
  switch (const ScalarType dtype = tensor.scalar_type()) {
    case ScalarType::Float: return Scalar::f32;
    case ScalarType::BFloat16: return Scalar::bf16;
    case ScalarType::Half: return Scalar::f16;
    default:
      throw std::invalid_argument(
          text(name, ": expected float32, bfloat16 or float16 with the native backend, got ", dtype));
  }
}

std::vector<Matrix> matrices(const char* name, const std::vector<Tensor>& tensors, const Tensor& like,
                             const Shape& shape) {
  std::vector<Matrix> out;
  const ScalarType dtype = like.scalar_type();
  for (const Tensor& t : tensors) {
    OEKD_CHECK(t.sizes().equals(like.sizes()), name, ": expected ", like.sizes(), " for each student, got ", t.sizes());
    OEKD_CHECK(t.scalar_type() == dtype, name, ": expected ", dtype, ", got ", t.scalar_type());
    OEKD_CHECK(t.is_cpu(), name, ": expected tensors on the CPU, got ", device_name(t));
    check_memory(name, t);
    out.push_back(shape.matrix(t));
  }
  return out;
}

std::vector<Source> teachers_of(const std::vector<Tensor>& tensors, const Shape& shape, std::vector<Tensor>& kept) {
  std::vector<Source> out;
  for (const Tensor& given : tensors) {
    OEKD_CHECK(given.sizes().equals(shape.sizes) && given.is_cpu(), "teacher_logits: expected ", shape.sizes,
               " on the CPU, got ", given.sizes(), " on ", device_name(given));
    check_memory("teacher_logits", given);
    // The dispatcher evaluates lazy negations in all arguments but an optional list of tensors.
    const Tensor& t = kept.emplace_back(resolve_neg(given));
    const bool wide = t.scalar_type() == ScalarType::Double;
    out.push_back({shape.matrix(t), wide ? Scalar::f64 : scalar_of("teacher_logits", t)});
  }
  return out;
}

Tensor floats_of(const char* name, const Tensor& tensor, bool expected, const std::string& shapes) {
  OEKD_CHECK(expected && tensor.is_cpu(), name, ": expected ", shapes, " on the CPU, got ", tensor.sizes(), " on ",
             device_name(tensor));
  OEKD_CHECK(is_floating(tensor.scalar_type()), name, ": expected a floating dtype, got ", tensor.scalar_type());
  check_memory(name, tensor);
  return contiguous(tensor, ScalarType::Float);
}

Tensor class_weights_of(const Tensor& weights, int64_t classes) {
  const bool fits = weights.dim() == 1 && weights.size(0) == classes;
  Tensor floats = floats_of("class_weights", weights, fits, text("[", classes, "]"));
  const float* w = floats.const_data_ptr<float>();
  for (int64_t c = 0; c < classes; ++c) {
    if (w[c] >= 0 && std::isfinite(w[c])) continue;
    const std::string given = std::isnan(w[c]) ? "nan" : text(w[c]);
    OEKD_CHECK(false, "weight: expected finite numbers >= 0, got ", given, " for class ", c);
  }
  OEKD_CHECK(std::any_of(w, w + classes, [](float x) { return x > 0; }),
             "weight: expected a weight > 0 for at least one class, got 0 for all");
  return floats;
}

double number_of(const char* name, const Tensor& tensor) {
  OEKD_CHECK(tensor.numel() == 1 && tensor.is_cpu(), name, ": expected one element on the CPU, got ", tensor.sizes(),
             " on ", device_name(tensor));
  check_memory(name, tensor);
  return item(tensor);
}

}  // namespace oekd
