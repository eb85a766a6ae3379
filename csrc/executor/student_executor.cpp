#include "student_executor.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>

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

template <class Visit>
void for_each_tensor(py::handle value, const Visit& visit) {
  if (THPVariable_Check(value.ptr())) {
    visit(THPVariable_Unpack(value.ptr()));
  } else if (py::isinstance<py::tuple>(value) || py::isinstance<py::list>(value)) {
    for (const py::handle item : value) for_each_tensor(item, visit);
  } else if (py::isinstance<py::dict>(value)) {
    for (const auto& item : py::reinterpret_borrow<py::dict>(value)) for_each_tensor(item.second, visit);
  }
}

}  // namespace

StudentExecutor::StudentExecutor(size_t num_students, c10::Device device, int workers, int threads,
                                 std::vector<size_t> order)
    : num_students_(num_students), workers_(workers), threads_(threads) {
  set_order(std::move(order));
  if (!device.is_cpu()) streams_.emplace(device, num_students);
}

StudentExecutor::~StudentExecutor() {
  if (pool_ && pool_->lost_by_fork()) {
    pool_.release();
  } else {
    const py::gil_scoped_release no_gil;
    pool_.reset();
  }
}

std::pair<std::vector<py::object>, Faults> StudentExecutor::forward(const std::vector<py::object>& branches,
                                                                    const std::vector<py::object>& inputs,
                                                                    const std::vector<size_t>& serial) {
  TORCH_CHECK_VALUE(branches.size() == num_students_ && inputs.size() == num_students_,
                    "branches, inputs: expected one for each of the ", num_students_, " students");
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

Faults StudentExecutor::backward(const std::vector<std::vector<at::Tensor>>& roots,
                                 const std::vector<std::vector<std::optional<at::Tensor>>>& grads) {
  TORCH_CHECK_VALUE(roots.size() == num_students_ && grads.size() == num_students_,
                    "roots, grads: expected one sequence for each of the ", num_students_, " students");
  std::vector<std::vector<at::Tensor>> given(num_students_);
  for (size_t j = 0; j < num_students_; ++j) {
    for (const std::optional<at::Tensor>& grad : grads[j]) given[j].push_back(grad.value_or(at::Tensor()));
  }
  const auto student = [&](size_t j) {
    if (roots[j].empty()) return;
    const py::gil_scoped_release no_gil;
    torch::autograd::backward(roots[j], given[j]);
  };
  return run(student, {});
}

void StudentExecutor::set_order(std::vector<size_t> order) {
  std::vector<size_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  bool once = sorted.size() == num_students_;
  for (size_t j = 0; once && j < num_students_; ++j) once = sorted[j] == j;
  TORCH_CHECK_VALUE(once, "order: expected each of the ", num_students_, " students once, got ", order);
  order_ = std::move(order);
}

bool StudentExecutor::inside() const {
  for (const Frame* frame = Frame::innermost; frame; frame = frame->outer) {
    if (frame->executor == this) return true;
  }
  return false;
}

Faults StudentExecutor::run(const Student& student, const std::vector<size_t>& serial) {
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
  if (inside()) {
    for (size_t j = 0; j < num_students_; ++j) student(j);
    return;
  }
  std::vector<std::vector<size_t>> groups;
  if (!serial.empty()) groups.push_back(serial);
  for (const size_t j : order_) {
    if (std::find(serial.begin(), serial.end(), j) == serial.end()) groups.push_back({j});
  }

  const CallerState caller;
  const Frame* const outer = Frame::innermost;
  std::vector<std::function<void()>> tasks;
  for (const std::vector<size_t>& group : groups) {
    tasks.emplace_back([&] {
      const py::gil_scoped_acquire gil;
      const CallerState::Guard state(caller);
      const Frame frame(this, outer);
      for (const size_t j : group) student(j);
    });
  }
  HostPool& host = pool();
  const py::gil_scoped_release no_gil;
  host.run(tasks);
}

HostPool& StudentExecutor::pool() {
  if (pool_ && pool_->lost_by_fork()) pool_.release();
  if (!pool_) pool_ = std::make_unique<HostPool>(workers_, threads_);
  return *pool_;
}

}  // namespace oekd
