// The direct convolution ops on CPU tensors. kernels.cpp registers them; oekd_fast/layers/direct_conv.py has the
// schemas.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdint>

namespace oekd {

void direct_conv(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);
void direct_conv_backward(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);

}  // namespace oekd
