// The library of the CPU kernels, oekd_fast/_kernels.so. It uses torch's stable ABI and no Python, so one build serves
// every torch from 2.10 on and every Python. oekd_fast/native.py loads it; oekd_fast/losses and oekd_fast/layers
// document the ops.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/direct_conv/direct_conv_cpu.h"
#include "cpu/ensemble_kd/ensemble_kd_ops.h"
#include "cpu/feature_kd/feature_kd_cpu.h"
#include "cpu/isa.h"
#include "cpu/norm_relu/norm_relu_cpu.h"
#include "cpu/winograd/winograd_cpu.h"

STABLE_TORCH_LIBRARY_IMPL(oekd_fast, CPU, m) {
  m.impl("ensemble_kd_value", oekd::ensemble_kd_value);
  m.impl("ensemble_kd_value_and_grad", oekd::ensemble_kd_value_and_grad);
  m.impl("ensemble_kd_value_and_grad_out", oekd::ensemble_kd_value_and_grad_out);
  m.impl("direct_conv", oekd::direct_conv);
  m.impl("direct_conv_backward", oekd::direct_conv_backward);
  m.impl("feature_kd_student", oekd::feature_kd_student);
  m.impl("norm_relu", oekd::norm_relu);
  m.impl("norm_relu_with", oekd::norm_relu_with);
  m.impl("norm_relu_backward", oekd::norm_relu_backward);
  m.impl("winograd_conv", oekd::winograd_conv);
  m.impl("winograd_conv_backward", oekd::winograd_conv_backward);
}

// Returns the names of the built instruction sets that this processor supports, widest first, separated by spaces.
extern "C" __attribute__((visibility("default"))) const char* oekd_fast_isa_names() {
  static const std::string names = [] {
    std::string joined;
    for (const oekd::Isa& isa : oekd::available_isas()) joined.append(joined.empty() ? "" : " ").append(isa.name);
    return joined;
  }();
  return names.c_str();
}
