#include "launch/prepared_call.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <array>
#include <type_traits>
#include <utility>

namespace oekd {
namespace {

using torch::autograd::Node;
using torch::autograd::variable_list;

// The last outputs of a differentiable forward launch, which only the backward pass reads: row_statistics and counted.
using Rows = std::array<at::Tensor, 2>;

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

// The backward pass of a call. The node that torch::autograd::Function makes takes longer: it looks up saved data by name,
// and composes the name of a C++ type in each backward pass.
class PreparedLossBackward final : public Node {
 public:
  PreparedLossBackward(std::shared_ptr<const PreparedCall> prepared, CallKey&& call, Rows&& rows)
      : Node(torch::autograd::collect_next_edges(call.logits)),
        prepared_(std::move(prepared)),
        call_(std::move(call)),
        rows_(std::move(rows)) {
    logits_.reserve(call_.logits.size());
    for (const at::Tensor& z : call_.logits) logits_.emplace_back(z, /*is_output=*/false);
    call_.logits.clear();
  }

  std::string name() const override { return "PreparedLossBackward"; }

  variable_list apply(variable_list&& upstreams) override {
    const at::Tensor& upstream = upstreams[0];
    if (!upstream.defined()) return variable_list(num_outputs());
    const variable_list logits = saved_logits();
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "ensemble_kd_loss: the compiled backends are differentiable once, got create_graph=True; "
                "backend='reference' is differentiable twice");
    return with_gil([&] { return can_launch(logits, upstream) ? launch(upstream) : compute(logits, upstream); });
  }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    for (torch::autograd::SavedVariable& z : logits_) z.reset_data();
    released_ = true;
  }

 private:
  variable_list saved_logits() {
    const std::lock_guard lock(mutex_);
    TORCH_CHECK(!released_, torch::autograd::ERR_BACKWARD_TWICE);
    variable_list logits;
    logits.reserve(logits_.size());
    for (const torch::autograd::SavedVariable& z : logits_) logits.push_back(z.unpack());
    return logits;
  }

  // Whether the launch was prepared for such tensors. Hooks for saved tensors may have replaced the logits.
  bool can_launch(const variable_list& logits, const at::Tensor& upstream) const {
    const c10::Device device = logits[0].device();
    if (something_watches() || !is_plain(upstream) || upstream.device() != device || upstream.dim() != 0 ||
        upstream.scalar_type() != at::kFloat || reinterpret_cast<uint64_t>(upstream.const_data_ptr()) % 16 != 0) {
      return false;
    }
    for (size_t j = 0; j < logits.size(); ++j) {
      if (reinterpret_cast<uint64_t>(logits[j].const_data_ptr()) != call_.inputs[j]) return false;
    }
    const c10::impl::VirtualGuardImpl guard(device.type());
    return guard.getDevice() == device && guard.getStream(device) == call_.stream;
  }

  variable_list launch(const at::Tensor& upstream) const {
    std::vector<uint64_t> inputs = call_.inputs;
    for (const at::Tensor* tensor : {&rows_[0], &rows_[1], &upstream}) {
      inputs.push_back(reinterpret_cast<uint64_t>(tensor->const_data_ptr()));
    }
    return prepared_->backward->run(upstream.device(), inputs, call_.numbers);
  }

  variable_list compute(const variable_list& logits, const at::Tensor& upstream) const {
    const py::object target = call_.target.defined() ? py::cast(call_.target) : py::none();
    return prepared_->other_backward(logits, target, rows_[0], rows_[1], upstream, call_.numbers)
        .cast<variable_list>();
  }

  const std::shared_ptr<const PreparedCall> prepared_;
  CallKey call_;
  const Rows rows_;
  std::vector<torch::autograd::SavedVariable> logits_;
  bool released_ = false;
};

// How autograd keeps a node: a std::shared_ptr in older versions of torch, a c10::intrusive_ptr in newer ones.
using NodePointer = decltype(torch::autograd::Edge::function);

template <typename T, typename Pointer = NodePointer, typename... Arguments>
Pointer make_node(Arguments&&... arguments) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<Node>>) {
    return std::make_shared<T>(std::forward<Arguments>(arguments)...);
  } else {
    return c10::make_intrusive<T>(std::forward<Arguments>(arguments)...);
  }
}

}  // namespace

std::shared_ptr<const PreparedCall> PreparedCall::make(std::shared_ptr<PreparedLaunch> forward,
                                                       std::shared_ptr<PreparedLaunch> backward,
                                                       py::object other_backward) {
  // The last reference may be dropped by a backward pass, without the GIL.
  const std::shared_ptr<PreparedCall> call(::new PreparedCall, [](PreparedCall* object) {
    if (!Py_IsInitialized()) return;
    const py::gil_scoped_acquire gil;
    delete object;
  });
  call->forward = std::move(forward);
  call->backward = std::move(backward);
  call->other_backward = std::move(other_backward);
  return call;
}

std::vector<at::Tensor> run(std::shared_ptr<const PreparedCall> prepared, CallKey&& call) {
  std::vector<at::Tensor> outputs = prepared->forward->run(call.logits[0].device(), call.inputs, call.numbers);
  if (call.differentiable) {
    Rows rows;
    for (size_t i = rows.size(); i-- > 0; outputs.pop_back()) rows[i] = std::move(outputs.back());
    torch::autograd::set_history(
        outputs[0], make_node<PreparedLossBackward>(std::move(prepared), std::move(call), std::move(rows)));
  }
  return outputs;
}

}  // namespace oekd
