// Checks of the arguments of the ensemble distillation ops, and what the kernels read in their place.
#pragma once

#include <string>
#include <vector>

#include "cpu/ensemble_kd/ensemble_kd.h"
#include "cpu/stable/memory.h"
#include "cpu/stable/tensor.h"

namespace oekd {

struct Settings {
  double temperature, ce_weight, kd_weight, label_smoothing;
  int64_t ignore_index;
  bool mean, detach_ensemble;
  double ensemble_ce_weight;
  bool per_row;
  int64_t divergence;  // a Divergence
  double beta;
  bool standardise_logits;
};

// Replaces the first three or four numbers of the settings by those in a tensor, which is in host memory.
void take_device_scalars(const Tensor& scalars, Settings& settings);

// Checks the settings; `with_grads` if gradients are computed.
void check_settings(const Settings& settings, bool has_target, bool with_grads);

// The logits [B, C] or [O, C, I] of all students and teachers have one shape.
struct Shape {
  // Checks the logits of the first student.
  explicit Shape(const Tensor& first);

  Sizes sizes;
  int64_t rows, classes;
  int64_t inner;        // as in KDProblem
  Few<int64_t> by_row;  // shape of what holds a number a row: [B] or [O, I]

  // `t` has these sizes.
  Matrix matrix(const Tensor& t) const;
};

Scalar scalar_of(const char* name, const Tensor& tensor);

// Checks tensors that have shape and dtype of `like`, the logits of the first student.
std::vector<Matrix> matrices(const char* name, const std::vector<Tensor>& tensors, const Tensor& like,
                             const Shape& shape);

// Returns the logits of the external teachers. `kept` holds the tensors that they point into.
std::vector<Source> teachers_of(const std::vector<Tensor>& tensors, const Shape& shape, std::vector<Tensor>& kept);

// Returns a small tensor as contiguous float32, after checks; `shapes` names the shapes that are expected.
Tensor floats_of(const char* name, const Tensor& tensor, bool expected, const std::string& shapes);

// Returns the weights of the classes as float32 [C].
Tensor class_weights_of(const Tensor& weights, int64_t classes);

// Returns the only element of a tensor.
double number_of(const char* name, const Tensor& tensor);

}  // namespace oekd
