#include "launch/prepared_calls.h"

#include <ATen/record_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <utility>

#include "launch/call_key.h"

namespace oekd {
namespace {

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
  const auto call = PreparedCall::make(std::move(forward), std::move(backward), std::move(other_backward));
  calls_.emplace_front(key, call);
  by_key_[calls_.front().first] = calls_.begin();
  if (calls_.size() > capacity_) {
    by_key_.erase(calls_.back().first);
    calls_.pop_back();
  }
}

std::shared_ptr<const PreparedCall> PreparedCalls::find(const std::string& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return nullptr;
  calls_.splice(calls_.begin(), calls_, found->second);
  return found->second->second;
}

py::object PreparedCalls::run(bool with_gradients, py::handle logits, py::handle target, py::handle options,
                              py::handle beside) {
  auto call = CallKey::read(device_, with_gradients, logits, target, options, beside);
  if (!call) return py::none();
  std::shared_ptr<const PreparedCall> prepared = find(call->bytes);
  if (prepared == nullptr) return py::none();

  RECORD_FUNCTION(with_gradients ? "oekd_fast::ensemble_kd_value_and_grad" : "oekd_fast::ensemble_kd_value",
                  c10::ArrayRef<const c10::IValue>{});
  return wrapped(oekd::run(std::move(prepared), std::move(*call)));
}

}  // namespace oekd
