// The direct convolution ops on CPU tensors. oekd_fast/layers/direct_conv.py has the schemas.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>
#include <tuple>

namespace oekd {

at::Tensor direct_conv(const at::Tensor& x, const at::Tensor& weight, int64_t stride, std::string_view isa);

std::tuple<at::Tensor, at::Tensor> direct_conv_backward(const at::Tensor& dy, const at::Tensor& x,
                                                        const at::Tensor& weight, int64_t stride, bool input_grad,
                                                        bool weight_grad, std::string_view isa);

}  // namespace oekd
