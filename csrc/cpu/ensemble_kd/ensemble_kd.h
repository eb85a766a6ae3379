// The ensemble distillation loss on a CPU: what a kernel is given. Free of torch, so that each instruction set's
// copy compiles in seconds and shares no inline function with another copy.
#pragma once

#include <cstdint>

namespace oekd {

enum class Scalar : int { f32, bf16, f16 };

// One [rows, classes] tensor of one student; strides in elements.
struct Matrix {
  void* data;
  int64_t row_stride;
  int64_t class_stride;
};

// What the students' targets are: the ensemble's softmax, the external teacher's, each student's mixture of logits, or
// the divergences from the sources' softmaxes, mixed.
enum class Targets : int { ensemble, teacher, logits, probabilities };

struct KDProblem {
  int64_t students, rows, classes;
  Scalar dtype;
  const Matrix* logits;          // [students], read only
  const Matrix* grads;           // [students], or null: statistics only
  const int64_t* target;         // [rows], or null: no cross-entropy; every label counted lies in [0, classes)
  int64_t ignore_index;
  const float* ensemble_weights;  // [students], or a gate's [rows, students], or null: the mean
  int64_t weights_row;            // from one row's weights to the next: 0, or students
  Targets targets;
  const Matrix* teacher;  // external, or null; read only
  Scalar teacher_dtype;
  const float* mixing;  // [students, sources()], or null
  double temperature;
  double ce_weight, kd_weight, ensemble_ce_weight;
  double label_smoothing;
  double grad_scale;             // upstream gradient, times 1/counted rows under "mean"
  bool stream_stores;            // gradients far larger than the caches: do not read their lines before writing
  bool moves_weights;            // the gradient of the weights is asked for: ensemble_ce_weight is not 0
  float* gate_grads;             // [rows, students] that of a gate, or null

  // Columns of the mixing matrix: the students, and the external teacher.
  int64_t sources() const { return students + (teacher ? 1 : 0); }
};

// Rows [row_begin, row_end). `scratch` holds scratch_bytes(problem), 64-byte aligned. Adds to
//   sums    [3 * students + 1]  cross-entropies, T^2 KL divergences, the ensemble's cross-entropy, dL/dw
//   correct [students + 1]      rows whose first largest logit is the target: students, then the ensemble
using KDRows = void (*)(const KDProblem& problem, int64_t row_begin, int64_t row_end, void* scratch, double* sums,
                        int64_t* correct);

// One namespace per instruction set; avx2 and avx512 are linked in where OEKD_HAVE_X86_COPIES is defined.
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
