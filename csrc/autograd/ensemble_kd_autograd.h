// Autograd of the ensemble distillation loss on CPU tensors, as registered in executor_module.cpp.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace oekd {

// Autograd kernel of `ensemble_kd_value`: its first output, the loss, is differentiable once, for `logits` only.
// It is boxed, so that it passes the options on without naming them: the schema declares them.
void ensemble_kd_value_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

}  // namespace oekd
