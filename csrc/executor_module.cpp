// The module oekd_fast._executor, which works with the torch and Python that it was built with only: the executor, the
// autograd kernel of the loss, and prepared calls of the loss. oekd_fast/parallel/executor.py documents the executor,
// oekd_fast/losses/prepared.py prepared calls.
#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "autograd/ensemble_kd_autograd.h"
#include "executor/student_executor.h"
#include "launch/prepared_calls.h"

TORCH_LIBRARY_IMPL(oekd_fast, AutogradCPU, m) {
  m.impl("ensemble_kd_value", torch::CppFunction::makeFromBoxedFunction<oekd::ensemble_kd_value_autograd>());
}

namespace {

py::bytes cpu_generator_state() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard lock(generator.mutex());
  const c10::intrusive_ptr<c10::TensorImpl> state = generator.unsafeGetGeneratorImpl()->get_state();
  return {static_cast<const char*>(state->data()), static_cast<size_t>(state->numel())};
}

}  // namespace

PYBIND11_MODULE(_executor, m) {
  m.def("cpu_generator_state", cpu_generator_state,
        "State of torch's default CPU generator. Modes and transforms do not see the call.");

  py::class_<oekd::StudentExecutor>(m, "StudentExecutor", "Runs students side by side, on host threads or streams.")
      .def(py::init([](size_t num_students, c10::Device device, int workers, int threads, std::vector<size_t> order) {
             return ::new oekd::StudentExecutor(num_students, device, workers, threads, std::move(order));
           }),
           py::arg("num_students"), py::arg("device"), py::kw_only(), py::arg("workers"), py::arg("threads"),
           py::arg("order"))
      .def("forward", &oekd::StudentExecutor::forward, py::arg("branches"), py::arg("inputs"), py::arg("serial"),
           "Returns (results of the students, [(student, exception), ...]).")
      .def("backward", &oekd::StudentExecutor::backward, py::arg("roots"), py::arg("grads"),
           "Runs the backward pass of each student and returns [(student, exception), ...].")
      .def_property("order", &oekd::StudentExecutor::order, &oekd::StudentExecutor::set_order,
                    "Order in which the students start on the CPU.")
      .def_property_readonly("inside", &oekd::StudentExecutor::inside,
                             "Whether the calling thread runs a student of this executor.");

  py::class_<oekd::PreparedLaunch, std::shared_ptr<oekd::PreparedLaunch>>(
      m, "PreparedLaunch", "A launch of a kernel in which only addresses and numbers change from call to call.")
      .def(py::init(&oekd::PreparedLaunch::make), py::arg("launch"), py::arg("arguments"), py::arg("blocks"),
           py::arg("outputs"));

  py::class_<oekd::PreparedCalls>(m, "PreparedCalls", "The calls of the loss whose launches are prepared.")
      .def(py::init<const std::string&, size_t>(), py::arg("device"), py::arg("capacity"))
      .def("key", &oekd::PreparedCalls::key, py::arg("with_gradients"), py::arg("logits"), py::arg("target"),
           py::arg("options"), py::arg("beside"), "Identifies a kind of call; None if no launch can be prepared for it.")
      .def("insert", &oekd::PreparedCalls::insert, py::arg("key"), py::arg("forward"), py::arg("backward"),
           py::arg("other_backward"))
      .def("run", &oekd::PreparedCalls::run, "Returns the outputs of a call; None if no launch is prepared for it.")
      .def("__len__", &oekd::PreparedCalls::size);
}
