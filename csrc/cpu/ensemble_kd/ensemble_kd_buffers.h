// Checks of the memory that the ensemble distillation ops write gradients to.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace oekd {

struct NamedTensor {
  const char* name;
  const at::Tensor& tensor;
};

// Checks that no two elements of the buffers share an address, and that the kernel reads none after it has been
// written. Buffer j may be exactly logits j. All tensors pass check_memory and have at most two dimensions.
//   out           gradients of the logits
//   weights_grad  written last
//   others        what the kernel reads beside the logits
void check_buffers(at::TensorList out, const std::optional<at::Tensor>& weights_grad, at::TensorList logits,
                   const std::vector<NamedTensor>& others);

}  // namespace oekd
