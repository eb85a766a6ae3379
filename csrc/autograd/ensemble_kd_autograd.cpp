#include "autograd/ensemble_kd_autograd.h"

#include <ATen/core/List.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/mul.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/custom_function.h>

#include <stdexcept>
#include <utility>

namespace oekd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::Stack;

// Returns a value that a call may consume: torch's stable ABI takes the tensors out of the lists that it passes to an op.
c10::IValue consumable(const c10::IValue& value) {
  return value.isTensorList() ? c10::IValue(value.toTensorList().copy()) : value;
}

// Calls `ensemble_kd_value_and_grad` below autograd; `stack` holds the arguments of `ensemble_kd_value`, which lack only
// grad_scale, the last but one. Leaves the five statistics and the list of gradients on the stack.
void value_and_grad(Stack& stack, c10::IValue grad_scale) {
  static const c10::OperatorHandle op =
      c10::Dispatcher::singleton().findSchemaOrThrow("oekd_fast::ensemble_kd_value_and_grad", "");
  stack.insert(stack.end() - 1, std::move(grad_scale));
  const at::AutoDispatchBelowADInplaceOrView guard;
  op.callBoxed(&stack);
}

// Calls `ensemble_kd_value` below autograd.
void value(Stack& stack) {
  static const c10::OperatorHandle op =
      c10::Dispatcher::singleton().findSchemaOrThrow("oekd_fast::ensemble_kd_value", "");
  const at::AutoDispatchBelowADInplaceOrView guard;
  op.callBoxed(&stack);
}

// One pass over the logits computes the loss and its gradients, since the upstream gradient is nearly always 1. If it is
// not, the gradients are computed again with it, so that they are rounded once.
struct EnsembleKDLoss : torch::autograd::Function<EnsembleKDLoss> {
  // Apply takes this many arguments beside the logits.
  static constexpr size_t OTHERS = 2;

  // `stack` holds the arguments of `ensemble_kd_value`, and afterwards its outputs but the first, which is returned.
  // `per_row`: there is a loss a row, whose upstream gradients are seldom 1.
  static at::Tensor forward(AutogradContext* ctx, at::TensorList logits, Stack& stack, bool per_row) {
    c10::impl::GenericList options(c10::AnyType::get());
    options.reserve(stack.size() - 1);
    for (size_t i = 1; i < stack.size(); ++i) options.push_back(consumable(stack[i]));
    ctx->save_for_backward(logits.vec());
    ctx->set_materialize_grads(false);
    ctx->saved_data["students"] = static_cast<int64_t>(logits.size());
    ctx->saved_data["options"] = std::move(options);
    ctx->saved_data["per_row"] = per_row;
    if (per_row) {
      value(stack);
    } else {
      value_and_grad(stack, {});
      ctx->saved_data["gradients"] = std::move(stack.back());
      stack.pop_back();
    }
    at::Tensor loss = std::move(stack.front()).toTensor();
    stack.erase(stack.begin());
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstreams) {
    const at::Tensor& upstream = upstreams[0];
    const auto students = static_cast<size_t>(ctx->saved_data["students"].toInt());
    variable_list grads;
    if (upstream.defined()) {
      TORCH_CHECK(!at::GradMode::is_enabled(),
                  "ensemble_kd_loss: the compiled backends are differentiable once, got create_graph=True; "
                  "backend='reference' is differentiable twice");
      // The gradients are given away, so that autograd keeps them without a copy. A second backward pass computes new
      // ones.
      c10::IValue gradients = std::exchange(ctx->saved_data["gradients"], {});
      if (is_batched(upstream)) {
        grads = scaled_gradients(ctx, upstream);
      } else {
        if (gradients.isNone() || !is_one(upstream)) {
          gradients = compute_again(ctx, ctx->get_saved_variables(), upstream);
        }
        grads = gradients.toTensorVector();
      }
    }
    grads.resize(students + OTHERS);
    return grads;
  }

 private:
  // False also if a tracer hides the value: a tensor of its own type, or the mode of make_fx.
  static bool is_one(const at::Tensor& upstream) {
    using Modes = c10::impl::TorchDispatchModeTLS;
    const bool hidden = upstream.key_set().has(c10::DispatchKey::Python) ||
                        Modes::get_mode(c10::impl::TorchDispatchModeKey::PROXY).has_value();
    return !hidden && upstream.item<double>() == 1.0;
  }

  // Whether `upstream` stands for several gradients, as with is_grads_batched=True. The op cannot read their values.
  static bool is_batched(const at::Tensor& upstream) {
    return upstream.key_set().has_any(
        c10::DispatchKeySet({c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::Batched}));
  }

  static c10::IValue compute_again(AutogradContext* ctx, const variable_list& logits, c10::IValue upstream) {
    const c10::List<c10::IValue> options = ctx->saved_data["options"].toList();
    Stack stack{c10::List<at::Tensor>(logits)};
    for (const c10::IValue& option : options) stack.push_back(consumable(option));
    try {
      value_and_grad(stack, std::move(upstream));
    } catch (const std::invalid_argument& error) {  // a ValueError of the op, which torch's engine does not translate
      TORCH_CHECK_VALUE(false, error.what());
    }
    return std::move(stack.back());
  }

  // Multiplies the gradients of an upstream gradient of 1 by a batch of others. They are computed in fp32, so that
  // 16-bit gradients are rounded to their dtype once.
  static variable_list scaled_gradients(AutogradContext* ctx, const at::Tensor& upstream) {
    variable_list logits = ctx->get_saved_variables();
    const at::ScalarType dtype = logits[0].scalar_type();
    for (at::Tensor& z : logits) z = z.to(at::kFloat);
    variable_list grads = compute_again(ctx, logits, {}).toTensorVector();
    at::Tensor factor = upstream;
    if (ctx->saved_data["per_row"].toBool()) {
      const at::IntArrayRef shape = logits[0].sizes();
      factor = shape.size() == 2 ? upstream.reshape({-1, 1}) : upstream.reshape({shape[0], 1, shape[2]});
    }
    for (at::Tensor& grad : grads) grad = at::mul(grad, factor).to(dtype);
    return grads;
  }
};

}  // namespace

void ensemble_kd_value_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet /*keys*/, Stack* stack) {
  const std::vector<at::Tensor> logits = stack->front().toTensorVector();
  bool needs_grad = false;
  for (const at::Tensor& z : logits) {
    needs_grad |= z.requires_grad();
    TORCH_CHECK_NOT_IMPLEMENTED(!z._fw_grad(/*level=*/0).defined(),
                                "ensemble_kd_loss: the compiled backends do not support forward-mode AD; "
                                "backend='reference' does");
  }
  if (!needs_grad || !at::GradMode::is_enabled()) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.callBoxed(stack);
    return;
  }
  static const int per_row = *op.schema().argumentIndexWithName("per_row");
  const bool no_reduction = (*stack)[per_row].toBool();
  at::Tensor loss = EnsembleKDLoss::apply(at::TensorList(logits), *stack, no_reduction);
  stack->insert(stack->begin(), std::move(loss));
}

}  // namespace oekd
