#include "launch/prepared_calls.h"

#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <utility>

#include "launch/call_key.h"

namespace oekd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The outputs of a differentiable call that only its backward pass reads.
constexpr size_t SAVED = 2;

// What a backward pass needs beside the logits.
struct Saved : torch::CustomClassHolder {
  Saved(std::shared_ptr<PreparedCall> prepared, CallKey&& call)
      : prepared(std::move(prepared)), call(std::move(call)) {
    this->call.logits.clear();  // autograd saves them
  }

  std::shared_ptr<PreparedCall> prepared;
  CallKey call;
  std::array<at::Tensor, SAVED> tensors;
};

// A tuple of `tensors`.
py::object wrapped(const std::vector<at::Tensor>& tensors) {
  py::tuple tuple(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    PyObject* const tensor = THPVariable_Wrap(tensors[i]);
    if (tensor == nullptr) throw py::error_already_set();
    PyTuple_SET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i), tensor);
  }
  return std::move(tuple);
}

// Calls `function` with the GIL. Autograd's engine passes a python_error on to the thread that waits.
template <typename Function>
auto with_gil(const Function& function) {
  const py::gil_scoped_acquire gil;
  try {
    return function();
  } catch (py::error_already_set& error) {
    error.restore();
    python_error raised;
    raised.persist();
    throw raised;
  }
}

struct PreparedLoss : torch::autograd::Function<PreparedLoss> {
  // Returns the loss, and writes all outputs of the launch to `outputs`.
  static at::Tensor forward(AutogradContext* ctx, at::TensorList logits, c10::intrusive_ptr<Saved>& saved,
                            std::vector<at::Tensor>& outputs) {
    const CallKey& call = saved->call;
    outputs = saved->prepared->forward->run(logits[0].device(), call.inputs, call.numbers);
    for (size_t i = 0; i < SAVED; ++i) saved->tensors[i] = outputs[outputs.size() - SAVED + i];
    outputs.resize(outputs.size() - SAVED);
    ctx->save_for_backward(logits.vec());
    ctx->set_materialize_grads(false);
    ctx->saved_data["saved"] = c10::IValue::make_capsule(saved);
    return outputs[0];
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstreams) {
    const at::Tensor& upstream = upstreams[0];
    const variable_list logits = ctx->get_saved_variables();
    variable_list grads;
    if (upstream.defined()) {
      TORCH_CHECK(!at::GradMode::is_enabled(),
                  "ensemble_kd_loss: the compiled backends are differentiable once, got create_graph=True; "
                  "backend='reference' is differentiable twice");
      const auto saved = c10::static_intrusive_pointer_cast<Saved>(ctx->saved_data["saved"].toCapsule());
      grads = with_gil([&] {
        return can_launch(*saved, logits, upstream) ? launch(*saved, upstream) : compute(*saved, logits, upstream);
      });
    }
    grads.resize(logits.size() + OTHERS);
    return grads;
  }

 private:
  // Apply takes this many arguments beside the logits.
  static constexpr size_t OTHERS = 2;

  // Whether the launch was prepared for such tensors. Hooks for saved tensors may have replaced the logits.
  static bool can_launch(const Saved& saved, const variable_list& logits, const at::Tensor& upstream) {
    const c10::Device device = logits[0].device();
    if (something_watches() || !is_plain(upstream) || upstream.device() != device || upstream.dim() != 0 ||
        upstream.scalar_type() != at::kFloat || reinterpret_cast<uint64_t>(upstream.const_data_ptr()) % 16 != 0) {
      return false;
    }
    for (size_t j = 0; j < logits.size(); ++j) {
      if (reinterpret_cast<uint64_t>(logits[j].const_data_ptr()) != saved.call.inputs[j]) return false;
    }
    const c10::impl::VirtualGuardImpl guard(device.type());
    return guard.getDevice() == device && guard.getStream(device) == saved.call.stream;
  }

  static variable_list launch(const Saved& saved, const at::Tensor& upstream) {
    std::vector<uint64_t> inputs = saved.call.inputs;
    for (const at::Tensor& tensor : {saved.tensors[0], saved.tensors[1], upstream}) {
      inputs.push_back(reinterpret_cast<uint64_t>(tensor.const_data_ptr()));
    }
    return saved.prepared->backward->run(upstream.device(), inputs, saved.call.numbers);
  }

  static variable_list compute(const Saved& saved, const variable_list& logits, const at::Tensor& upstream) {
    const py::object target = saved.call.target.defined() ? py::cast(saved.call.target) : py::none();
    return saved.prepared
        ->other_backward(logits, target, saved.tensors[0], saved.tensors[1], upstream, saved.call.numbers)
        .cast<variable_list>();
  }
};

}  // namespace

PreparedCalls::PreparedCalls(const std::string& device, size_t capacity)
    : device_(c10::Device(device).type()), capacity_(capacity) {}

py::object PreparedCalls::key(bool with_gradients, py::handle logits, py::handle target, py::handle options,
                              py::handle beside) const {
  const auto call = CallKey::read(device_, with_gradients, logits, target, options, beside);
  return call ? py::object(py::bytes(call->bytes)) : py::none();
}

void PreparedCalls::insert(const std::string& key, std::shared_ptr<PreparedLaunch> forward,
                           std::shared_ptr<PreparedLaunch> backward, py::object other_backward) {
  if (find(key) != nullptr) return;
  // The last reference may be dropped by a backward pass, without the GIL.
  const std::shared_ptr<PreparedCall> call(::new PreparedCall, [](PreparedCall* object) {
    if (!Py_IsInitialized()) return;
    const py::gil_scoped_acquire gil;
    delete object;
  });
  call->forward = std::move(forward);
  call->backward = std::move(backward);
  call->other_backward = std::move(other_backward);
  calls_.emplace_front(key, call);
  by_key_[calls_.front().first] = calls_.begin();
  if (calls_.size() > capacity_) {
    by_key_.erase(calls_.back().first);
    calls_.pop_back();
  }
}

std::shared_ptr<PreparedCall> PreparedCalls::find(const std::string& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return nullptr;
  calls_.splice(calls_.begin(), calls_, found->second);
  return found->second->second;
}

py::object PreparedCalls::run(bool with_gradients, py::handle logits, py::handle target, py::handle options,
                              py::handle beside) {
  auto call = CallKey::read(device_, with_gradients, logits, target, options, beside);
  if (!call) return py::none();
  const std::shared_ptr<PreparedCall> prepared = find(call->bytes);
  if (prepared == nullptr) return py::none();

  RECORD_FUNCTION(with_gradients ? "oekd_fast::ensemble_kd_value_and_grad" : "oekd_fast::ensemble_kd_value",
                  c10::ArrayRef<const c10::IValue>{});
  if (!call->differentiable) {
    return wrapped(prepared->forward->run(call->logits[0].device(), call->inputs, call->numbers));
  }
  const std::vector<at::Tensor> inputs = call->logits;
  auto saved = c10::make_intrusive<Saved>(prepared, std::move(*call));
  std::vector<at::Tensor> outputs;
  at::Tensor loss = PreparedLoss::apply(at::TensorList(inputs), saved, outputs);
  outputs[0] = std::move(loss);
  return wrapped(outputs);
}

}  // namespace oekd
