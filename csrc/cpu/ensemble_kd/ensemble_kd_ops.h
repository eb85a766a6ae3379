// The ensemble distillation ops on CPU tensors. module.cpp registers them; their schemas are in oekd_fast/losses.
// They are boxed, so that their many arguments are read in one place.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace oekd {

void ensemble_kd_value(const c10::OperatorHandle& op, torch::jit::Stack* stack);
void ensemble_kd_value_and_grad(const c10::OperatorHandle& op, torch::jit::Stack* stack);
void ensemble_kd_value_and_grad_out(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace oekd
