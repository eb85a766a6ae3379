// Interface between the ensemble distillation ops on the CPU and their kernels. This header does not include torch, so
// each instruction set's copy of a kernel compiles in seconds and shares no inline function with another copy.
#pragma once

#include <cstdint>

namespace oekd {

enum class Scalar : int { f32, bf16, f16, f64 };

// A tensor [outer, classes, inner] whose rows are r = o * inner + i; strides in elements. A matrix [rows, classes] has
// outer = 1 and inner = rows.
struct Matrix {
  void* data;
  int64_t outer_stride;
  int64_t class_stride;
  int64_t inner_stride;
};

// A matrix that is only read. Its dtype may differ from that of the students.
struct Source {
  Matrix matrix;
  Scalar dtype;
};

// The distribution that the students learn from.
enum class Targets : int {
  ensemble,       // softmax of the ensemble's logits
  teacher,        // softmax of the only external teacher's logits
  logits,         // for each student, softmax of its own mixture of the sources' logits
  probabilities,  // for each student, its own mixture of the divergences from the sources' softmaxes
};

// How a student is compared with its target; ensemble_kd_divergences.h and ensemble_kd_decoupled.h have the formulas.
enum class Divergence : int { forward, reverse, js, decoupled };

// Statistics of each row, written in place of the sums; null pointers if the sums are wanted.
struct RowStatistics {
  float* loss;         // [rows]
  float* ce;           // [students, rows]
  float* kd;           // [students, rows]
  float* ensemble_ce;  // [rows]
};

// The label of a row is a distribution over the classes, times the classes' weights:
//   y_c = class_weights_c [(1 - label_smoothing) t_c + label_smoothing / classes]
// where t is one-hot, or a row of `probabilities`.
struct KDProblem {
  int64_t students, rows, classes, inner;
  Scalar dtype;
  const Matrix* logits;           // [students], read only
  const Matrix* grads;            // [students], or null if no gradients are computed
  const int64_t* target;          // [rows] the label, or the first most probable class; null without cross-entropies
  int64_t ignore_index;           // rows with another target count; their target is in [0, classes)
  const Source* probabilities;    // labels of the rows that are not one-hot, or null if all are
  const uint8_t* spread;          // [rows] whether the row's label is not one-hot; null without probabilities
  const float* class_weights;     // [classes], or null for 1
  const float* ensemble_weights;  // [students], or a gate [rows, students], or null for the mean
  int64_t weights_row;            // distance between the weights of neighbouring rows: 0, or students for a gate
  Targets targets;
  const Source* teachers;         // [num_teachers] logits
  int64_t num_teachers;
  const float* mixing;            // [students, sources()], or null
  Divergence divergence;
  double beta;                    // of Divergence::js and decoupled
  bool standardise_logits;        // the divergences are those of the standardised logits of students and targets
  double temperature;
  double ce_weight, kd_weight, ensemble_ce_weight;
  double label_smoothing;
  double ce_scale, kd_scale;      // factors of the gradients: the upstream gradient over the terms' divisors
  const float* row_scales;        // [rows] further factors of each row's gradients, or null
  RowStatistics row_statistics;
  bool stream_stores;             // write gradients past the caches
  bool with_weights_grad;         // compute the gradient of the ensemble weights; ensemble_ce_weight is not 0
  float* gate_grads;              // [rows, students] gradient of a gate, or null

  // Columns of `mixing`: the students, then the external teachers.
  int64_t sources() const { return students + num_teachers; }
  bool counts(int64_t row) const { return !target || target[row] != ignore_index; }
};

// The kernels of one instruction set. Rows are processed in pieces, which may run concurrently.
struct KDKernel {
  // Rows of a piece. It does not depend on the number of threads, and so neither does the order of the sums.
  int64_t (*piece)(const KDProblem&);
  int64_t (*scratch_bytes)(const KDProblem&);
  // Processes rows [row_begin, row_end). `scratch` holds scratch_bytes(problem) bytes, 64-byte aligned. Adds to
  //   sums    [3 * students + 1]  cross-entropies, T^2 KL divergences, the ensemble's cross-entropy, dL/dw
  //   correct [students + 1]      rows whose first largest logit is the target: students, then the ensemble
  void (*rows)(const KDProblem& problem, int64_t row_begin, int64_t row_end, void* scratch, double* sums,
               int64_t* correct);
};

// Rows whose labels are given as probabilities.
struct LabelRows {
  int64_t rows, classes, inner;
  Source probabilities;
  int64_t* largest;  // [rows] first class with the largest probability
  uint8_t* spread;   // [rows] 0 if the row is one-hot, 1 if it is another distribution, 2 if it is none
};

// Classifies rows [begin, end). A distribution has no negative number and no NaN, and its sum is within 1e-2 of 1.
namespace baseline { void ensemble_kd_labels(const LabelRows&, int64_t begin, int64_t end); }
namespace avx2 { void ensemble_kd_labels(const LabelRows&, int64_t begin, int64_t end); }
namespace avx512 { void ensemble_kd_labels(const LabelRows&, int64_t begin, int64_t end); }

// A row after the other, classes in the lanes of vectors. Supports every problem.
// avx2 and avx512 exist if OEKD_HAVE_X86_COPIES is defined.
namespace baseline { extern const KDKernel ensemble_kd_kernel; }
namespace avx2 { extern const KDKernel ensemble_kd_kernel; }
namespace avx512 { extern const KDKernel ensemble_kd_kernel; }

// Neighbouring rows in the lanes of vectors, for problems that `suits_lanes`.
namespace baseline { extern const KDKernel ensemble_kd_lanes_kernel; }
namespace avx2 { extern const KDKernel ensemble_kd_lanes_kernel; }
namespace avx512 { extern const KDKernel ensemble_kd_lanes_kernel; }

}  // namespace oekd
