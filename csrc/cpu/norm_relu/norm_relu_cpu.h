// The BatchNorm, residual and ReLU ops on CPU tensors. kernels.cpp registers them; oekd_fast/layers/norm_relu.py has
// the schemas.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdint>

namespace oekd {

void norm_relu(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);
void norm_relu_with(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);
void norm_relu_backward(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);

}  // namespace oekd
