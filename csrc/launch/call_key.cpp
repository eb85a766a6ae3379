#include "launch/call_key.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>

namespace oekd {
namespace {

constexpr Py_ssize_t NUMBERS = 3;  // temperature, ce_weight, kd_weight
constexpr uint64_t ALIGNMENT = 16;  // bytes; Triton specialises kernels for addresses that it divides

class Bytes {
 public:
  Bytes() { bytes_.reserve(512); }

  template <typename T>
  void put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }

  void put(std::string_view text) {
    put(text.size());
    bytes_.append(text);
  }

  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// A pointer to the tensor if it is plain and on `device`.
const at::Tensor* plain_tensor(PyObject* object, std::optional<c10::Device> device) {
  if (!THPVariable_CheckExact(object)) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  const bool fits = tensor.defined() && (!device || tensor.device() == *device) && is_plain(tensor);
  return fits ? &tensor : nullptr;
}

void put(Bytes& bytes, const at::Tensor& tensor, uint64_t address) {
  bytes.put(static_cast<int8_t>(tensor.scalar_type()));
  bytes.put(address % ALIGNMENT == 0);
  for (const int64_t size : tensor.sizes()) bytes.put(size);
  for (const int64_t stride : tensor.strides()) bytes.put(stride);
}

// The value of a Python number, or nullopt.
std::optional<double> number(PyObject* object) {
  if (PyFloat_CheckExact(object)) return PyFloat_AS_DOUBLE(object);
  if (!PyLong_CheckExact(object)) return std::nullopt;
  const double value = PyLong_AsDouble(object);
  if (PyErr_Occurred() == nullptr) return value;
  PyErr_Clear();
  return std::nullopt;
}

// False for values other than None, booleans, numbers and text.
bool put_option(Bytes& bytes, PyObject* option) {
  if (option == Py_None) {
    bytes.put('n');
  } else if (PyBool_Check(option)) {
    bytes.put(option == Py_True ? 't' : 'f');
  } else if (PyFloat_CheckExact(option)) {
    bytes.put('d');
    bytes.put(PyFloat_AS_DOUBLE(option));
  } else if (PyLong_CheckExact(option)) {
    int overflow = 0;
    bytes.put('i');
    bytes.put(PyLong_AsLongLongAndOverflow(option, &overflow));
    return overflow == 0;
  } else if (PyUnicode_CheckExact(option)) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(option, &size);
    if (text == nullptr) {
      PyErr_Clear();
      return false;
    }
    bytes.put('s');
    bytes.put(std::string_view(text, static_cast<size_t>(size)));
  } else {
    return false;
  }
  return true;
}

}  // namespace

bool is_plain(const at::Tensor& tensor) {
  using c10::DispatchKey;
  static const c10::DispatchKeySet plain =
      c10::DispatchKeySet({DispatchKey::CPU, DispatchKey::CUDA, DispatchKey::ADInplaceOrView, DispatchKey::AutogradCPU,
                           DispatchKey::AutogradCUDA, DispatchKey::AutocastCPU, DispatchKey::AutocastCUDA});
  return (tensor.key_set().raw_repr() & ~plain.raw_repr()) == 0 && !tensor._fw_grad(/*level=*/0).defined();
}

bool something_watches() {
  using c10::DispatchKey;
  static const c10::DispatchKeySet watching(
      {DispatchKey::Python, DispatchKey::PythonTLSSnapshot, DispatchKey::PythonDispatcher, DispatchKey::Functionalize,
       DispatchKey::FuncTorchDynamicLayerFrontMode, DispatchKey::FuncTorchDynamicLayerBackMode,
       DispatchKey::FuncTorchVmapMode});
  return c10::impl::TorchDispatchModeTLS::any_modes_set() ||
         c10::impl::tls_local_dispatch_key_set().included_.has_any(watching);
}

std::optional<CallKey> CallKey::read(c10::DeviceType device_type, bool with_gradients, py::handle logits,
                                     py::handle target, py::handle options, py::handle beside) {
  if (!(PyList_CheckExact(logits.ptr()) || PyTuple_CheckExact(logits.ptr()))) return std::nullopt;
  const Py_ssize_t students = PySequence_Fast_GET_SIZE(logits.ptr());
  PyObject* const* const items = PySequence_Fast_ITEMS(logits.ptr());
  if (students == 0 || something_watches()) return std::nullopt;

  std::optional<c10::Device> device;
  std::vector<at::Tensor> tensors;
  std::vector<uint64_t> inputs;
  Bytes bytes;
  tensors.reserve(students);
  inputs.reserve(students + 1);
  bytes.put(students);
  bool requires_grad = false;
  for (Py_ssize_t j = 0; j < students; ++j) {
    const at::Tensor* tensor = plain_tensor(items[j], device);
    if (tensor == nullptr || tensor->dim() != 2 || tensor->device().type() != device_type) return std::nullopt;
    device = tensor->device();
    inputs.push_back(reinterpret_cast<uint64_t>(tensor->const_data_ptr()));
    put(bytes, *tensor, inputs.back());
    requires_grad |= tensor->requires_grad();
    tensors.push_back(*tensor);
  }
  const c10::impl::VirtualGuardImpl guard(device_type);
  if (guard.getDevice() != *device) return std::nullopt;
  const c10::Stream stream = guard.getStream(*device);
  bytes.put(device->index());
  bytes.put(stream.id());
  const bool differentiable = !with_gradients && requires_grad && at::GradMode::is_enabled();
  bytes.put(with_gradients);
  bytes.put(differentiable);

  at::Tensor labels;
  if (!target.is_none()) {
    const at::Tensor* tensor = plain_tensor(target.ptr(), device);
    if (tensor == nullptr || tensor->dim() != 1) return std::nullopt;
    labels = *tensor;
    inputs.push_back(reinterpret_cast<uint64_t>(labels.const_data_ptr()));
    put(bytes, labels, inputs.back());
  }
  bytes.put(labels.defined());

  std::vector<double> numbers;
  numbers.reserve(NUMBERS);
  for (Py_ssize_t i = 0; i < NUMBERS; ++i) {
    const std::optional<double> value = number(PyTuple_GET_ITEM(options.ptr(), i));
    if (!value || !std::isfinite(*value)) return std::nullopt;
    bytes.put(*value != 0);
    numbers.push_back(*value);
  }
  const double temperature = numbers[0];
  if (temperature <= 0) return std::nullopt;
  // The kernels are compiled for small integers, and for one code of all other temperatures.
  const bool compiled_in = temperature <= 4 && temperature == std::floor(temperature);
  bytes.put(static_cast<int8_t>(compiled_in ? temperature : 0));
  for (Py_ssize_t i = NUMBERS; i < PyTuple_GET_SIZE(options.ptr()); ++i) {
    if (!put_option(bytes, PyTuple_GET_ITEM(options.ptr(), i))) return std::nullopt;
  }
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(beside.ptr()); ++i) {
    if (!put_option(bytes, PyTuple_GET_ITEM(beside.ptr(), i))) return std::nullopt;
  }
  return CallKey{bytes.take(),       std::move(tensors), std::move(labels), std::move(numbers),
                 std::move(inputs), differentiable,     stream};
}

}  // namespace oekd
