// The ensemble distillation loss on CPU tensors.
#pragma once

#include <array>
#include <optional>
#include <string_view>
#include <vector>

#include "cpu/ensemble_kd/ensemble_kd_arguments.h"

namespace oekd {

// Loss, ce [S], kd [S], ensemble_ce, correct [S + 1]; with `per_row` loss [R], ce [S, R], kd [S, R], ensemble_ce [R].
using Statistics = std::array<Tensor, 5>;

// Arguments of the ops, as oekd_fast/losses/schemas.py describes them.
struct Inputs {
  std::vector<Tensor> logits;
  OptionalTensor target, ensemble_weights;
  OptionalTensor device_scalars;  // numbers that replace those of the settings
  std::optional<std::vector<Tensor>> teacher_logits;
  OptionalTensor mixing;
  bool mix_probabilities;
  OptionalTensor class_weights, num_items;
  Settings settings;
};

// Gradients that a call writes beside the statistics, and the factors they are multiplied by.
struct Outputs {
  OptionalTensor grad_scale;
  std::vector<Tensor> grads;
  OptionalTensor weights_grad;
};

// Computes the statistics, and the gradients if `outputs` is not null, by the kernel of an instruction set.
Statistics ensemble_kd(const Inputs& inputs, const Outputs* outputs, std::string_view isa);

}  // namespace oekd
