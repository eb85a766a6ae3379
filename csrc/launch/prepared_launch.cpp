#include "launch/prepared_launch.h"

#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/Dtype.h>

#include <utility>

namespace oekd {
namespace {

// The values that the arguments of one call are made from.
struct Values {
  const std::vector<uint64_t>& inputs;
  const c10::SmallVector<uint64_t, 12>& blocks;
  const std::vector<double>& numbers;
};

PyObject* checked(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  return object;
}

// A new reference.
PyObject* value_of(const Argument& argument, const Values& values) {
  switch (argument.source) {
    case Argument::Source::CONSTANT:
      return argument.constant.inc_ref().ptr();
    case Argument::Source::INPUT:
      return checked(PyLong_FromUnsignedLongLong(values.inputs[argument.index]));
    case Argument::Source::BLOCK:
      return checked(PyLong_FromUnsignedLongLong(values.blocks[argument.index] + argument.offset));
    case Argument::Source::NUMBER:
      return checked(PyFloat_FromDouble(values.numbers[argument.index]));
    case Argument::Source::TUPLE:
      break;
  }
  py::tuple tuple(argument.items.size());
  for (size_t i = 0; i < argument.items.size(); ++i) {
    PyTuple_SET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i), value_of(argument.items[i], values));
  }
  return tuple.release().ptr();
}

// A tensor on a part of `block`. It is not a view: it has a version counter of its own.
at::Tensor part(const at::Tensor& block, const Output& output) {
  at::Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(block.storage()), block.key_set(), c10::scalarTypeToTypeMeta(output.dtype));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(output.sizes, output.strides, output.offset);
  return tensor;
}

}  // namespace

Argument Argument::parse(const py::tuple& description) {
  const auto source = description[0].cast<std::string>();
  Argument argument;
  if (source == "constant") {
    argument.constant = description[1];
  } else if (source == "tuple") {
    argument.source = Source::TUPLE;
    for (const py::handle item : description[1].cast<py::tuple>()) {
      argument.items.push_back(parse(item.cast<py::tuple>()));
    }
  } else {
    argument.index = description[1].cast<size_t>();
    argument.source = source == "input" ? Source::INPUT : source == "block" ? Source::BLOCK : Source::NUMBER;
    if (argument.source == Source::BLOCK) argument.offset = description[2].cast<uint64_t>();
  }
  return argument;
}

std::shared_ptr<PreparedLaunch> PreparedLaunch::make(py::object launch, const py::list& arguments,
                                                     std::vector<int64_t> blocks, const py::list& outputs) {
  // A backward pass may drop the last reference in a thread that does not hold the GIL.
  const std::shared_ptr<PreparedLaunch> prepared(::new PreparedLaunch, [](PreparedLaunch* object) {
    if (!Py_IsInitialized()) return;
    const py::gil_scoped_acquire gil;
    delete object;
  });
  prepared->launch_ = std::move(launch);
  prepared->blocks_ = std::move(blocks);
  for (const py::handle argument : arguments) {
    prepared->arguments_.push_back(Argument::parse(argument.cast<py::tuple>()));
  }
  for (const py::handle item : outputs) {
    const auto output = item.cast<py::tuple>();
    const auto* dtype = reinterpret_cast<THPDtype*>(py::object(output[2]).ptr());
    prepared->outputs_.push_back({output[0].cast<size_t>(), output[1].cast<int64_t>(), dtype->scalar_type,
                                  output[3].cast<std::vector<int64_t>>(), output[4].cast<std::vector<int64_t>>()});
  }
  return prepared;
}

std::vector<at::Tensor> PreparedLaunch::run(c10::Device device, const std::vector<uint64_t>& inputs,
                                            const std::vector<double>& numbers) const {
  const at::TensorOptions bytes = at::TensorOptions(device).dtype(at::kByte);
  c10::SmallVector<at::Tensor, 12> blocks;
  c10::SmallVector<uint64_t, 12> addresses;
  for (const int64_t size : blocks_) {
    blocks.push_back(at::empty({size}, bytes));
    addresses.push_back(reinterpret_cast<uint64_t>(blocks.back().storage().data()));
  }

  const Values values{inputs, addresses, numbers};
  c10::SmallVector<PyObject*, 64> arguments;
  // The arguments are released also if one of them cannot be made.
  struct Release {
    c10::SmallVector<PyObject*, 64>& objects;
    ~Release() {
      for (PyObject* object : objects) Py_DECREF(object);
    }
  } const release{arguments};
  for (const Argument& argument : arguments_) arguments.push_back(value_of(argument, values));
  Py_DECREF(checked(PyObject_Vectorcall(launch_.ptr(), arguments.data(), arguments.size(), nullptr)));

  std::vector<at::Tensor> outputs;
  outputs.reserve(outputs_.size());
  for (const Output& output : outputs_) outputs.push_back(part(blocks[output.block], output));
  return outputs;
}

}  // namespace oekd
