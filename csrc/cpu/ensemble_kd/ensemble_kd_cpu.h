// The ensemble distillation ops on CPU tensors. module.cpp registers them; their schemas are in oekd_fast/losses.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

namespace oekd {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> ensemble_kd_value(
    at::TensorList logits, const std::optional<at::Tensor>& target, const std::optional<at::Tensor>& ensemble_weights,
    double temperature, double ce_weight, double kd_weight, double label_smoothing, int64_t ignore_index, bool mean,
    bool detach_ensemble, const std::optional<at::Tensor>& device_scalars, double ensemble_ce_weight,
    const std::optional<at::TensorList>& teacher_logits, const std::optional<at::Tensor>& mixing,
    bool mix_probabilities, const std::optional<at::Tensor>& class_weights, const std::optional<at::Tensor>& num_items,
    bool per_row, int64_t divergence, double beta, std::string_view isa);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>>
ensemble_kd_value_and_grad(
    at::TensorList logits, const std::optional<at::Tensor>& target, const std::optional<at::Tensor>& ensemble_weights,
    double temperature, double ce_weight, double kd_weight, double label_smoothing, int64_t ignore_index, bool mean,
    bool detach_ensemble, const std::optional<at::Tensor>& device_scalars, double ensemble_ce_weight,
    const std::optional<at::TensorList>& teacher_logits, const std::optional<at::Tensor>& mixing,
    bool mix_probabilities, const std::optional<at::Tensor>& class_weights, const std::optional<at::Tensor>& num_items,
    bool per_row, int64_t divergence, double beta, const std::optional<at::Tensor>& grad_scale, std::string_view isa);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> ensemble_kd_value_and_grad_out(
    at::TensorList logits, const std::optional<at::Tensor>& target, const std::optional<at::Tensor>& ensemble_weights,
    double temperature, double ce_weight, double kd_weight, double label_smoothing, int64_t ignore_index, bool mean,
    bool detach_ensemble, const std::optional<at::Tensor>& device_scalars, double ensemble_ce_weight,
    const std::optional<at::TensorList>& teacher_logits, const std::optional<at::Tensor>& mixing,
    bool mix_probabilities, const std::optional<at::Tensor>& class_weights, const std::optional<at::Tensor>& num_items,
    bool per_row, int64_t divergence, double beta, const std::optional<at::Tensor>& grad_scale, at::TensorList out,
    const std::optional<at::Tensor>& weights_grad, std::string_view isa);

}  // namespace oekd
