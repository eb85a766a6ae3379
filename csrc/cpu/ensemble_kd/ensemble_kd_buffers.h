// Checks of the memory that the ensemble distillation ops write gradients to.
#pragma once

#include <vector>

#include "cpu/stable/tensor.h"

namespace oekd {

struct NamedTensor {
  const char* name;
  const Tensor& tensor;
};

// Checks that no two elements of the buffers share an address, and that the kernel reads none after it has been
// written. Buffer j may be exactly logits j. All tensors pass check_memory and have at most three dimensions.
//   out           gradients of the logits
//   weights_grad  written last
//   others        what the kernel reads beside the logits
void check_buffers(const std::vector<Tensor>& out, const OptionalTensor& weights_grad,
                   const std::vector<Tensor>& logits, const std::vector<NamedTensor>& others);

}  // namespace oekd
