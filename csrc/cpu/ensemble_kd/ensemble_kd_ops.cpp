#include "cpu/ensemble_kd/ensemble_kd_ops.h"

#include <string>

#include "cpu/ensemble_kd/ensemble_kd_cpu.h"
#include "cpu/populate.h"
#include "cpu/stable/boxed.h"

namespace oekd {
namespace {

// Reads the arguments that all ops share.
Inputs inputs_of(Arguments& arguments) {
  Inputs in{};
  Settings& settings = in.settings;
  in.logits = arguments.tensors();
  in.target = arguments.optional_tensor();
  in.ensemble_weights = arguments.optional_tensor();
  settings.temperature = arguments.number();
  settings.ce_weight = arguments.number();
  settings.kd_weight = arguments.number();
  settings.label_smoothing = arguments.number();
  settings.ignore_index = arguments.integer();
  settings.mean = arguments.flag();
  settings.detach_ensemble = arguments.flag();
  in.device_scalars = arguments.optional_tensor();
  settings.ensemble_ce_weight = arguments.number();
  in.teacher_logits = arguments.optional_tensors();
  in.mixing = arguments.optional_tensor();
  in.mix_probabilities = arguments.flag();
  in.class_weights = arguments.optional_tensor();
  in.num_items = arguments.optional_tensor();
  settings.per_row = arguments.flag();
  settings.divergence = arguments.integer();
  settings.beta = arguments.number();
  settings.standardise_logits = arguments.flag();
  return in;
}

}  // namespace

void ensemble_kd_value(StableIValue* stack, uint64_t /*num_arguments*/, uint64_t /*num_results*/) {
  Arguments arguments(stack);
  const Inputs inputs = inputs_of(arguments);
  const std::string isa = arguments.text();
  const auto [loss, ce, kd, ensemble_ce, correct] = ensemble_kd(inputs, nullptr, isa);
  reply(stack, loss, ce, kd, ensemble_ce, correct);
}

void ensemble_kd_value_and_grad(StableIValue* stack, uint64_t /*num_arguments*/, uint64_t /*num_results*/) {
  Arguments arguments(stack);
  const Inputs inputs = inputs_of(arguments);
  Outputs outputs{arguments.optional_tensor(), {}, {}};
  const std::string isa = arguments.text();
  for (const Tensor& z : inputs.logits) {
    const Tensor& grad = outputs.grads.emplace_back(empty_like(z));
    populate_new_memory(grad.mutable_data_ptr(), grad.numel() * grad.element_size());
  }
  const auto [loss, ce, kd, ensemble_ce, correct] = ensemble_kd(inputs, &outputs, isa);
  reply(stack, loss, ce, kd, ensemble_ce, correct, outputs.grads);
}

void ensemble_kd_value_and_grad_out(StableIValue* stack, uint64_t /*num_arguments*/, uint64_t /*num_results*/) {
  Arguments arguments(stack);
  const Inputs inputs = inputs_of(arguments);
  Outputs outputs;
  outputs.grad_scale = arguments.optional_tensor();
  outputs.grads = arguments.tensors();
  outputs.weights_grad = arguments.optional_tensor();
  const std::string isa = arguments.text();
  const auto [loss, ce, kd, ensemble_ce, correct] = ensemble_kd(inputs, &outputs, isa);
  reply(stack, loss, ce, kd, ensemble_ce, correct);
}

}  // namespace oekd
