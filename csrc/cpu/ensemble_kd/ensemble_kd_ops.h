// The ensemble distillation ops on CPU tensors. kernels.cpp registers them; their schemas are in oekd_fast/losses.
// They are boxed, so that their many arguments are read in one place.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdint>

namespace oekd {

void ensemble_kd_value(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);
void ensemble_kd_value_and_grad(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);
void ensemble_kd_value_and_grad_out(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);

}  // namespace oekd
