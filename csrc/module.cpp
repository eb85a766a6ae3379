// Registrations only: what the ops compute is said in oekd_fast/losses/ensemble_kd.py, norm.py
// and direct_conv.py, how students run in executor.py.
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "cpu/direct_conv/direct_conv_cpu.h"
#include "cpu/ensemble_kd/ensemble_kd_autograd.h"
#include "cpu/ensemble_kd/ensemble_kd_cpu.h"
#include "cpu/isa.h"
#include "cpu/norm_relu/norm_relu_cpu.h"
#include "executor/student_executor.h"

TORCH_LIBRARY_IMPL(oekd_fast, CPU, m) {
  m.impl("ensemble_kd_value", oekd::ensemble_kd_value);
  m.impl("ensemble_kd_value_and_grad", oekd::ensemble_kd_value_and_grad);
  m.impl("ensemble_kd_value_and_grad_out", oekd::ensemble_kd_value_and_grad_out);
  m.impl("direct_conv", oekd::direct_conv);
  m.impl("direct_conv_backward", oekd::direct_conv_backward);
  m.impl("norm_relu", oekd::norm_relu);
  m.impl("norm_relu_backward", oekd::norm_relu_backward);
}

TORCH_LIBRARY_IMPL(oekd_fast, AutogradCPU, m) {
  m.impl("ensemble_kd_value", torch::CppFunction::makeFromBoxedFunction<oekd::ensemble_kd_value_autograd>());
}

PYBIND11_MODULE(_native, m) {
  m.def("isa_names", oekd::isa_names, "Instruction sets that were built and that this processor runs, widest first.");

  py::class_<oekd::StudentExecutor>(m, "StudentExecutor", "Runs students side by side, on host threads or streams.")
      .def(py::init<size_t, c10::Device, int, int, std::vector<size_t>>(), py::arg("num_students"), py::arg("device"),
           py::kw_only(), py::arg("workers"), py::arg("threads"), py::arg("order"))
      .def("forward", &oekd::StudentExecutor::forward, py::arg("branches"), py::arg("inputs"), py::arg("serial"),
           "(branch(input) of each student, [(student, exception), ...])")
      .def("backward", &oekd::StudentExecutor::backward, py::arg("roots"), py::arg("grads"),
           "[(student, exception), ...] after the backward pass of each student's graph")
      .def_property("order", &oekd::StudentExecutor::order, &oekd::StudentExecutor::set_order,
                    "The students as they are started on the host.")
      .def_property_readonly("inside", &oekd::StudentExecutor::inside, "Whether this thread runs one of its students.");
}
