#include "cpu/ensemble_kd/ensemble_kd_ops.h"

#include <ATen/ops/empty_like.h>

#include <string>
#include <utility>

#include "cpu/ensemble_kd/ensemble_kd_cpu.h"
#include "cpu/populate.h"

namespace oekd {
namespace {

using torch::jit::Stack;

// Reads the arguments of a call, which are the last values of a stack, in the order of the schema.
class Arguments {
 public:
  Arguments(const c10::OperatorHandle& op, const Stack& stack)
      : next_(stack.end() - static_cast<ptrdiff_t>(op.schema().arguments().size())) {}

  double number() { return (next_++)->toDouble(); }
  int64_t integer() { return (next_++)->toInt(); }
  bool flag() { return (next_++)->toBool(); }
  std::string text() { return (next_++)->toStringRef(); }
  std::vector<at::Tensor> tensors() { return (next_++)->toTensorVector(); }
  OptionalTensor tensor() { return (next_++)->toOptional<at::Tensor>(); }
  std::optional<std::vector<at::Tensor>> optional_tensors() {
    if (next_->isNone()) return ++next_, std::nullopt;
    return tensors();
  }

  // The arguments that all ops share.
  Inputs inputs() {
    Inputs in{};
    Settings& settings = in.settings;
    in.logits = tensors();
    in.target = tensor();
    in.ensemble_weights = tensor();
    settings.temperature = number();
    settings.ce_weight = number();
    settings.kd_weight = number();
    settings.label_smoothing = number();
    settings.ignore_index = integer();
    settings.mean = flag();
    settings.detach_ensemble = flag();
    in.device_scalars = tensor();
    settings.ensemble_ce_weight = number();
    in.teacher_logits = optional_tensors();
    in.mixing = tensor();
    in.mix_probabilities = flag();
    in.class_weights = tensor();
    in.num_items = tensor();
    settings.per_row = flag();
    settings.divergence = integer();
    settings.beta = number();
    return in;
  }

 private:
  Stack::const_iterator next_;
};

void reply(const c10::OperatorHandle& op, Stack& stack, Statistics statistics) {
  stack.erase(stack.end() - static_cast<ptrdiff_t>(op.schema().arguments().size()), stack.end());
  std::apply([&](auto&... tensors) { (stack.emplace_back(std::move(tensors)), ...); }, statistics);
}

}  // namespace

void ensemble_kd_value(const c10::OperatorHandle& op, Stack* stack) {
  Arguments arguments(op, *stack);
  const Inputs inputs = arguments.inputs();
  const std::string isa = arguments.text();
  reply(op, *stack, ensemble_kd(inputs, nullptr, isa));
}

void ensemble_kd_value_and_grad(const c10::OperatorHandle& op, Stack* stack) {
  Arguments arguments(op, *stack);
  const Inputs inputs = arguments.inputs();
  Outputs outputs{arguments.tensor(), {}, {}};
  const std::string isa = arguments.text();
  for (const at::Tensor& z : inputs.logits) {
    at::Tensor& grad = outputs.grads.emplace_back(at::empty_like(z));
    populate_new_memory(grad.storage().mutable_data(), grad.storage().nbytes());
  }
  reply(op, *stack, ensemble_kd(inputs, &outputs, isa));
  stack->emplace_back(std::move(outputs.grads));
}

void ensemble_kd_value_and_grad_out(const c10::OperatorHandle& op, Stack* stack) {
  Arguments arguments(op, *stack);
  const Inputs inputs = arguments.inputs();
  Outputs outputs;
  outputs.grad_scale = arguments.tensor();
  outputs.grads = arguments.tensors();
  outputs.weights_grad = arguments.tensor();
  const std::string isa = arguments.text();
  reply(op, *stack, ensemble_kd(inputs, &outputs, isa));
}

}  // namespace oekd
