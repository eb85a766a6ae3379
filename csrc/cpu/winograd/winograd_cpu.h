// The ops of Winograd's convolution on CPU tensors. kernels.cpp registers them; oekd_fast/layers/winograd.py has the
// schemas.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdint>

namespace oekd {

void winograd_conv(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);
void winograd_conv_backward(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);

}  // namespace oekd
