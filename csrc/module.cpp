// Registrations only: what each op computes is said in oekd_fast/ops.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include "cpu/ensemble_kd_cpu.h"
#include "cpu/isa.h"

TORCH_LIBRARY_IMPL(oekd_fast, CPU, m) {
  m.impl("ensemble_kd_value", oekd::ensemble_kd_value);
  m.impl("ensemble_kd_value_and_grad", oekd::ensemble_kd_value_and_grad);
  m.impl("ensemble_kd_value_and_grad_out", oekd::ensemble_kd_value_and_grad_out);
}

PYBIND11_MODULE(_native, m) {
  m.def("isa_names", oekd::isa_names, "Instruction sets that were built and that this processor runs, widest first.");
}
