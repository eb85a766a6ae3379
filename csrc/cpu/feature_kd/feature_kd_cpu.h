// The op of the intermediate loss on CPU tensors. kernels.cpp registers it; oekd_fast/losses/feature_native.py has the
// schema.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdint>

namespace oekd {

void feature_kd_student(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);

}  // namespace oekd
