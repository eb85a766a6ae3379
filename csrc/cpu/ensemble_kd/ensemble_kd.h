// Interface between the ensemble distillation ops on the CPU and their kernel. This header does not include torch, so
// each instruction set's copy of the kernel compiles in seconds and shares no inline function with another copy.
#pragma once

#include <cstdint>

namespace oekd {

enum class Scalar : int { f32, bf16, f16 };

// A [rows, classes] tensor; strides in elements.
struct Matrix {
  void* data;
  int64_t row_stride;
  int64_t class_stride;
};

// Logits of an external teacher, read only. Their dtype may differ from that of the students.
struct Teacher {
  Matrix logits;
  Scalar dtype;
};

// The distribution that the students learn from.
enum class Targets : int {
  ensemble,       // softmax of the ensemble's logits
  teacher,        // softmax of the only external teacher's logits
  logits,         // for each student, softmax of its own mixture of the sources' logits
  probabilities,  // for each student, its own mixture of the divergences from the sources' softmaxes
};

struct KDProblem {
  int64_t students, rows, classes;
  Scalar dtype;
  const Matrix* logits;           // [students], read only
  const Matrix* grads;            // [students], or null if no gradients are computed
  const int64_t* target;          // [rows], or null if there is no cross-entropy; labels that count are in [0, classes)
  int64_t ignore_index;
  const float* ensemble_weights;  // [students], or a gate [rows, students], or null for the mean
  int64_t weights_row;            // distance between the weights of neighbouring rows: 0, or students for a gate
  Targets targets;
  const Teacher* teachers;        // [num_teachers]
  int64_t num_teachers;
  const float* mixing;            // [students, sources()], or null
  double temperature;
  double ce_weight, kd_weight, ensemble_ce_weight;
  double label_smoothing;
  double grad_scale;              // the upstream gradient, divided by the number of counted rows if reduction is "mean"
  bool stream_stores;             // write gradients past the caches
  bool with_weights_grad;         // compute the gradient of the ensemble weights; ensemble_ce_weight is not 0
  float* gate_grads;              // [rows, students] gradient of a gate, or null

  // Columns of `mixing`: the students, then the external teachers.
  int64_t sources() const { return students + num_teachers; }
};

// Processes rows [row_begin, row_end). `scratch` holds scratch_bytes(problem) bytes, 64-byte aligned. Adds to
//   sums    [3 * students + 1]  cross-entropies, T^2 KL divergences, the ensemble's cross-entropy, dL/dw
//   correct [students + 1]      rows whose first largest logit is the target: students, then the ensemble
using KDRows = void (*)(const KDProblem& problem, int64_t row_begin, int64_t row_end, void* scratch, double* sums,
                        int64_t* correct);

// One namespace for each instruction set. avx2 and avx512 are linked in where OEKD_HAVE_X86_COPIES is defined.
namespace baseline {
void ensemble_kd_rows(const KDProblem&, int64_t, int64_t, void*, double*, int64_t*);
int64_t ensemble_kd_scratch_bytes(const KDProblem&);
}  // namespace baseline
namespace avx2 {
void ensemble_kd_rows(const KDProblem&, int64_t, int64_t, void*, double*, int64_t*);
int64_t ensemble_kd_scratch_bytes(const KDProblem&);
}  // namespace avx2
namespace avx512 {
void ensemble_kd_rows(const KDProblem&, int64_t, int64_t, void*, double*, int64_t*);
int64_t ensemble_kd_scratch_bytes(const KDProblem&);
}  // namespace avx512

}  // namespace oekd
