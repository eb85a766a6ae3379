#include "student_executor.h"

#include <ATen/Parallel.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pythoncapi_compat.h>

#include <algorithm>
#include <string_view>
#include <thread>
#include <unordered_set>

#include "caller_state.h"

namespace oekd {
namespace {

// A stack of the executors that this thread runs students of, including those of the calling threads.
struct Frame {
  Frame(const StudentExecutor* executor, const Frame* outer) : executor(executor), outer(outer), before(innermost) {
    innermost = this;
  }
  ~Frame() { innermost = before; }

  const StudentExecutor* const executor;
  const Frame* const outer;
  const Frame* const before;
  static thread_local const Frame* innermost;
};
thread_local const Frame* Frame::innermost = nullptr;

// Returns the exception of a call as torch translates it for Python, with its traceback, or null. Needs the GIL.
template <class Call>
py::object fault_of(const Call& call) {
  try {
    torch::PyWarningHandler warnings;
    try {
      call();
    } catch (...) {
      warnings.set_in_exception();
      throw;
    }
  } catch (const std::exception&) {
    torch::translate_exception_to_python(std::current_exception());
    const py::error_already_set error;
    if (error.trace()) PyException_SetTraceback(error.value().ptr(), error.trace().ptr());
    return error.value();
  }
  return {};
}

// Whether a value has the memory layout of a tensor. isinstance also accepts objects that only imitate one.
bool is_tensor(py::handle value) {
  return PyObject_TypeCheck(value.ptr(), reinterpret_cast<PyTypeObject*>(THPVariableClass));
}

// Calls visit(tensor) for the tensors in nested tuples, lists and dicts, which may contain themselves. Runs no Python
// code, so that the containers stay as they are.
template <class Visit>
void for_each_tensor(py::handle value, const Visit& visit) {
  std::vector<py::handle> unvisited{value};
  std::unordered_set<PyObject*> containers;
  while (!unvisited.empty()) {
    const py::handle item = unvisited.back();
    unvisited.pop_back();
    if (is_tensor(item)) {
      visit(THPVariable_Unpack(item.ptr()));
    } else if (!PyTuple_Check(item.ptr()) && !PyList_Check(item.ptr()) && !PyDict_Check(item.ptr())) {
      continue;
    } else if (!containers.insert(item.ptr()).second) {
      continue;
    } else if (PyDict_Check(item.ptr())) {
      for (const auto& entry : py::reinterpret_borrow<py::dict>(item)) unvisited.push_back(entry.second);
    } else if (PyTuple_Check(item.ptr())) {
      for (const py::handle entry : py::reinterpret_borrow<py::tuple>(item)) unvisited.push_back(entry);
    } else {
      for (const py::handle entry : py::reinterpret_borrow<py::list>(item)) unvisited.push_back(entry);
    }
  }
}

at::Tensor tensor_of(const py::object& value, std::string_view argument, std::string_view expected, size_t j,
                     size_t k) {
  TORCH_CHECK_TYPE(is_tensor(value), argument, "[", j, "][", k, "]: expected ", expected, ", got ",
                   Py_TYPE(value.ptr())->tp_name);
  return THPVariable_Unpack(value.ptr());
}

}  // namespace

StudentExecutor::StudentExecutor(size_t num_students, c10::Device device, int workers, int threads,
                                 std::vector<size_t> order)
    : num_students_(num_students), workers_(workers), threads_(threads) {
  // More intra-op threads than the caller has, or the processor, exhaust the memory of OpenMP, which ends the process.
  const int most_threads = std::max<int>(at::get_num_threads(), std::thread::hardware_concurrency());
  TORCH_CHECK_VALUE(num_students >= 1, "num_students: expected an integer >= 1, got ", num_students);
  TORCH_CHECK_VALUE(workers >= 1, "workers: expected an integer >= 1, got ", workers);
  TORCH_CHECK_VALUE(threads >= 1 && threads <= most_threads, "threads: expected an integer in 1..", most_threads,
                    ", got ", threads);
  set_order(std::move(order));
  if (!device.is_cpu()) streams_.emplace(device, num_students);
}

StudentExecutor::~StudentExecutor() {
  for (std::unique_ptr<HostPool>& pool : idle_) {
    if (pool->lost_by_fork()) pool.release();
  }
  const py::gil_scoped_release no_gil;
  idle_.clear();
}

std::pair<std::vector<py::object>, Faults> StudentExecutor::forward(const std::vector<py::object>& branches,
                                                                    const std::vector<py::object>& inputs,
                                                                    const std::vector<size_t>& serial) {
  TORCH_CHECK_VALUE(branches.size() == num_students_ && inputs.size() == num_students_,
                    "branches, inputs: expected one for each of the ", num_students_, " students");
  std::vector<bool> found(num_students_);
  for (const size_t j : serial) {
    TORCH_CHECK_VALUE(j < num_students_ && !found[j], "serial: expected distinct students below ", num_students_,
                      ", got ", j, j < num_students_ ? " twice" : "");
    found[j] = true;
  }
  std::vector<py::object> results(num_students_, py::none());
  Faults faults = run([&](size_t j) { results[j] = branches[j](inputs[j]); }, serial);
  // During capture the graph's memory pool keeps all memory.
  if (streams_ && !streams_->capturing()) {
    for (size_t j = 0; j < num_students_; ++j) {
      for_each_tensor(inputs[j], [&](const at::Tensor& tensor) { streams_->used_by_student(tensor, j); });
      for_each_tensor(results[j], [&](const at::Tensor& tensor) { streams_->used_by_caller(tensor); });
    }
  }
  return {std::move(results), std::move(faults)};
}

Faults StudentExecutor::backward(const std::vector<std::vector<py::object>>& roots,
                                 const std::vector<std::vector<py::object>>& grads) {
  TORCH_CHECK_VALUE(roots.size() == num_students_ && grads.size() == num_students_,
                    "roots, grads: expected one sequence for each of the ", num_students_, " students");
  // torch.func includes this key in a thread while a transform is active there.
  TORCH_CHECK(!c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode),
              "backward: expected a call outside of torch.func transforms; use torch.func.grad or torch.func.vjp");
  std::vector<std::vector<at::Tensor>> outputs(num_students_), given(num_students_);
  for (size_t j = 0; j < num_students_; ++j) {
    TORCH_CHECK_VALUE(roots[j].size() == grads[j].size(), "grads[", j, "]: expected ", roots[j].size(),
                      ", one for each root, got ", grads[j].size());
    for (size_t k = 0; k < roots[j].size(); ++k) {
      outputs[j].push_back(tensor_of(roots[j][k], "roots", "a tensor", j, k));
      const py::object& grad = grads[j][k];
      given[j].push_back(grad.is_none() ? at::Tensor() : tensor_of(grad, "grads", "a tensor or None", j, k));
    }
  }
  const auto student = [&](size_t j) {
    if (outputs[j].empty()) return;
    const py::gil_scoped_release no_gil;
    torch::autograd::backward(outputs[j], given[j]);
  };
  return run(student, {});
}

void StudentExecutor::set_order(std::vector<size_t> order) {
  std::vector<size_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  bool once = sorted.size() == num_students_;
  for (size_t j = 0; once && j < num_students_; ++j) once = sorted[j] == j;
  TORCH_CHECK_VALUE(once, "order: expected each of the ", num_students_, " students once, got ",
                    c10::ArrayRef<size_t>(order).slice(0, std::min<size_t>(order.size(), 10)),
                    order.size() > 10 ? c10::str(" and ", order.size() - 10, " more") : "");
  order_ = std::move(order);
}

bool StudentExecutor::inside() const {
  for (const Frame* frame = Frame::innermost; frame; frame = frame->outer) {
    if (frame->executor == this) return true;
  }
  return false;
}

Faults StudentExecutor::run(const Student& student, const std::vector<size_t>& serial) {
  // The first use of autograd in a forked child builds torch's engine anew. Torch requires the GIL for that, which
  // students do not hold inside torch: two of them would destroy the old engine twice.
  torch::autograd::Engine::get_default_engine();
  std::vector<py::object> raised(num_students_);
  const Student caught = [&](size_t j) { raised[j] = fault_of([&] { student(j); }); };
  const py::object broken = fault_of([&] { streams_ ? streams_->run(caught) : run_on_host(caught, serial); });

  Faults faults;
  for (size_t j = 0; j < num_students_; ++j) {
    if (raised[j]) faults.emplace_back(j, std::move(raised[j]));
  }
  // If streams cannot be joined, an error of a student is the likely cause and is reported instead.
  if (broken && faults.empty()) {
    py::set_error(py::type::of(broken), broken);
    throw py::error_already_set();
  }
  return faults;
}

void StudentExecutor::run_on_host(const Student& student, const std::vector<size_t>& serial) {
  // Python ends other threads that take the GIL once it finalizes.
  if (inside() || Py_IsFinalizing()) {
    for (size_t j = 0; j < num_students_; ++j) student(j);
    return;
  }
  std::vector<std::vector<size_t>> groups;
  if (!serial.empty()) groups.push_back(serial);
  for (const size_t j : order_) {
    if (std::find(serial.begin(), serial.end(), j) == serial.end()) groups.push_back({j});
  }

  const std::vector<CallerState> callers(groups.size());
  const Frame* const outer = Frame::innermost;
  std::vector<std::function<void()>> tasks;
  for (size_t i = 0; i < groups.size(); ++i) {
    tasks.emplace_back([&, i] {
      const Frame frame(this, outer);  // outlives the thread's Python objects, which may call the executor when deleted
      const py::gil_scoped_acquire gil;
      const CallerState::Guard state(callers[i]);
      for (const size_t j : groups[i]) student(j);
    });
  }
  std::unique_ptr<HostPool> pool = take_pool();
  {
    const py::gil_scoped_release no_gil;
    pool->run(tasks);
  }
  idle_.push_back(std::move(pool));
}

std::unique_ptr<HostPool> StudentExecutor::take_pool() {
  while (!idle_.empty()) {
    std::unique_ptr<HostPool> pool = std::move(idle_.back());
    idle_.pop_back();
    if (!pool->lost_by_fork()) return pool;
    pool.release();
  }
  // More workers than students would have nothing to do.
  const int workers = static_cast<int>(std::min<size_t>(workers_, num_students_));
  try {
    return std::make_unique<HostPool>(workers, threads_);
  } catch (const std::system_error& error) {
    TORCH_CHECK(false, "workers: could not start ", workers, " threads (", error.code().message(), ")");
  }
}

}  // namespace oekd
