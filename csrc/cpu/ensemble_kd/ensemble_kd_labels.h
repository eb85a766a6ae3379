// Labels of the ensemble distillation ops: class indices, or probabilities.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "cpu/ensemble_kd/ensemble_kd_arguments.h"
#include "cpu/isa.h"

namespace oekd {

struct Labels {
  at::Tensor classes;        // int64 [rows], contiguous: KDProblem::target
  at::Tensor given;          // the tensor that the kernel reads labels from: `classes` or `probabilities`
  Source probabilities;      // of the rows that are not one-hot
  at::Tensor spread;         // uint8 [rows]; undefined if all rows are one-hot
  int64_t ignore_index;      // of `classes`
  int64_t counted;           // rows that count
  double weight;             // sum of the class weights of their labels; for probabilities the number of rows
};

// Checks labels: each row is a class in [0, C) or ignore_index, or a distribution.
Labels labels_of(const at::Tensor& target, const Shape& shape, const float* class_weights, int64_t ignore_index,
                 const Isa& isa);

}  // namespace oekd
