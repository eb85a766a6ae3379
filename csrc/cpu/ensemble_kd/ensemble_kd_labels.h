// Labels of the ensemble distillation ops: class indices, or probabilities.
#pragma once

#include "cpu/ensemble_kd/ensemble_kd_arguments.h"
#include "cpu/isa.h"
#include "cpu/stable/tensor.h"

namespace oekd {

struct Labels {
  Tensor classes;          // int64 [rows], contiguous: KDProblem::target
  Tensor given;            // the tensor that the kernel reads labels from: `classes` or `probabilities`
  Source probabilities;    // of the rows that are not one-hot
  OptionalTensor spread;   // uint8 [rows]; none if all rows are one-hot
  int64_t ignore_index;    // of `classes`
  int64_t counted;         // rows that count
  double weight;           // sum of the class weights of their labels; for probabilities the number of rows
};

// Checks labels: each row is a class in [0, C) or ignore_index, or a distribution.
Labels labels_of(const Tensor& target, const Shape& shape, const float* class_weights, int64_t ignore_index,
                 const Isa& isa);

}  // namespace oekd
