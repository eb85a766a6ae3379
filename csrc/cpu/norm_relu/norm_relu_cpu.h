// The BatchNorm, residual and ReLU ops on CPU tensors. module.cpp registers them; oekd_fast/layers/norm_relu.py has the
// schemas.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace oekd {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> norm_relu(const at::Tensor& x, const at::Tensor& weight,
                                                                     const at::Tensor& bias,
                                                                     const std::optional<at::Tensor>& residual,
                                                                     double eps, std::string_view isa);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> norm_relu_backward(
    const at::Tensor& dy, const at::Tensor& x, const std::optional<at::Tensor>& y, const at::Tensor& weight,
    const at::Tensor& bias, const at::Tensor& mean, const at::Tensor& rstd, bool residual_grad, std::string_view isa);

}  // namespace oekd
