#include "cpu/ensemble_kd/ensemble_kd_lanes.h"

namespace oekd {
namespace {

constexpr int64_t LEAST_ROWS = 16;               // adjacent rows that are worth it
constexpr int64_t MOST_BYTES = int64_t{512} << 10;  // of such a block of rows, as floats

bool in_lanes(const Matrix& m) { return m.inner_stride == 1 && m.class_stride != 1; }

}  // namespace

bool suits_lanes(const KDProblem& p) {
  const bool simple = (p.targets == Targets::ensemble || p.targets == Targets::teacher) && p.weights_row == 0 &&
                      p.ensemble_ce_weight == 0 && p.divergence == Divergence::forward;
  const int64_t matrices = p.students + p.num_teachers + (p.probabilities != nullptr);
  if (!simple || p.inner < LEAST_ROWS || matrices * p.classes > MOST_BYTES / (4 * LEAST_ROWS)) return false;
  for (int64_t j = 0; j < p.students; ++j) {
    if (!in_lanes(p.logits[j]) || (p.grads && !in_lanes(p.grads[j]))) return false;
  }
  for (int64_t k = 0; k < p.num_teachers; ++k) {
    if (!in_lanes(p.teachers[k].matrix)) return false;
  }
  return !p.probabilities || in_lanes(p.probabilities->matrix);
}

}  // namespace oekd
