// Checks of the arguments of the ensemble distillation ops, and what the kernels read in their place.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <optional>
#include <string>
#include <vector>

#include "cpu/ensemble_kd/ensemble_kd.h"

namespace oekd {

struct Settings {
  double temperature, ce_weight, kd_weight, label_smoothing;
  int64_t ignore_index;
  bool mean, detach_ensemble;
  double ensemble_ce_weight;
  bool per_row;
  int64_t divergence;  // a Divergence
  double beta;
};

// Replaces the first three or four numbers of the settings by those in a tensor, which is in host memory.
void take_device_scalars(const at::Tensor& scalars, Settings& settings);

// Checks the settings; `with_grads` if gradients are computed.
void check_settings(const Settings& settings, bool has_target, bool with_grads);

// The logits [B, C] or [O, C, I] of all students and teachers have one shape.
struct Shape {
  // Checks the logits of the first student.
  explicit Shape(const at::Tensor& first);

  at::IntArrayRef sizes;
  int64_t rows, classes;
  int64_t inner;                        // as in KDProblem
  c10::SmallVector<int64_t, 2> by_row;  // shape of what holds a number a row: [B] or [O, I]

  // `t` has these sizes.
  Matrix matrix(const at::Tensor& t) const;
};

Scalar scalar_of(const char* name, const at::Tensor& tensor);

// Checks tensors that have shape and dtype of `like`, the logits of the first student.
std::vector<Matrix> matrices(const char* name, at::TensorList tensors, const at::Tensor& like, const Shape& shape);

// Returns the logits of the external teachers. `kept` holds the tensors that they point into.
std::vector<Source> teachers_of(at::TensorList tensors, const Shape& shape, std::vector<at::Tensor>& kept);

// Returns a small tensor as contiguous float32, after checks; `shapes` names the shapes that are expected.
at::Tensor floats_of(const char* name, const at::Tensor& tensor, bool expected, const std::string& shapes);

// Returns the weights of the classes as float32 [C].
at::Tensor class_weights_of(const at::Tensor& weights, int64_t classes);

// Returns the only element of a tensor.
double number_of(const char* name, const at::Tensor& tensor);

}  // namespace oekd
