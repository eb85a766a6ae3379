// The targets of one row of the ensemble distillation loss: their logits, and their part in the students' gradients.
#pragma once

#include "cpu/ensemble_kd/ensemble_kd_row.h"

namespace oekd::OEKD_ISA {
namespace {

class RowTargets : protected Row {
 protected:
  using Row::Row;

  // Mixes each student's target from the logits of the students and the external teachers.
  void mix_logits(int64_t tile, int64_t n, int64_t padded, TileSums* sums) {
    for (int64_t j = 0; j < p.students; ++j) {
      fill(extra_shifted(j), 0, padded);
      for (int64_t i = 0; i < p.students; ++i) add_source(j, i, slot(tile, 1 + i), padded);
    }
    for (int64_t k = 0; k < p.num_teachers; ++k) {
      load_teacher(p.teachers[k], tile, n, mixed_teacher());
      for (int64_t j = 0; j < p.students; ++j) add_source(j, p.students + k, mixed_teacher(), padded);
    }
    for (int64_t j = 0; j < p.students; ++j) {
      for (int64_t c = n; c < padded; ++c) extra_shifted(j)[c] = -INFINITY;
      sums[j].max = divide_and_max(extra_shifted(j), padded, 1.0f);
    }
  }

  void add_source(int64_t j, int64_t source, const float* z, int64_t padded) {
    const float w = p.mixing[j * p.sources() + source];
    if (w != 0) add_scaled(extra_shifted(j), z, w, padded);
  }

  // Loads a tile of an external teacher's logits and returns their maximum.
  float load_teacher(const Source& teacher, int64_t tile, int64_t n, float* dst) {
    return with_dtype(teacher.dtype, [&]<class U>(U) {
      return take_logits<false>(address<const U>(teacher.matrix, tile), n, 0, dst, dst);
    });
  }

  // Writes the spread part of the row's label to `label`.
  void load_label(int64_t tile, int64_t n) {
    const float even = static_cast<float>(p.label_smoothing / static_cast<double>(p.classes));
    const float keep = static_cast<float>(1 - p.label_smoothing);
    const float* w = p.class_weights ? p.class_weights + tile * l.width : nullptr;
    if (!p.spread || !p.spread[row_]) return spread_label<float>(nullptr, w, n, keep, even, label);
    with_dtype(p.probabilities->dtype, [&]<class U>(U) {
      spread_label(address<const U>(p.probabilities->matrix, tile), w, n, keep, even, label);
    });
  }

  // A member's logits in a tile that has just been loaded.
  float* logits_of(int64_t tile, int64_t k) const {
    return k == 0 ? mixed : k > p.students ? extra_shifted(k - 1 - p.students) : slot(tile, k);
  }

  // The label's column in a tile, or -1.
  int64_t label_column(int64_t tile) const {
    const int64_t column = target_ - tile * l.width;
    return column >= 0 && column < columns(tile) ? column : -1;
  }

  // Takes the label's class out of the maxima of a tile, for the decoupled divergence.
  void set_label_aside(int64_t tile, TileSums* sums) {
    const int64_t padded = round_up(columns(tile), LANES), column = label_column(tile);
    for (int64_t k = 0; k < l.members; ++k) {
      float* z = logits_of(tile, k);
      if (k <= p.students) look_up(z, tile, sums[k].max, row_sums[k]);
      if (column < 0) continue;
      asides[k].label = z[column];
      if (z[column] == sums[k].max) sums[k].max = largest_of_others(z, padded, column);
    }
  }

  // Takes the label's class out of a member's exponentials in a tile, and out of their sums.
  void leave_label_out(int64_t tile, int64_t k, float* exps, TileSums& sums) const {
    const int64_t column = label_column(tile);
    if (column < 0) return;
    const double d = static_cast<double>(asides[k].label) - shift(sums.max);
    sums.at_t -= exps[column];
    sums.at_1 -= d > 0 ? 1.0 : exp(d);
    if (sums.max == -INFINITY) sums.at_t = sums.at_1 = 0;
    exps[column] = 0;
  }

  // Student j's factors of its own softmax and of its targets in the gradient of the decoupled divergence, and the
  // gradient of the label's logit.
  struct Pull { double own, targets, label; };
  Pull pull(int64_t j) const {
    Pull sum{0, p.beta, 0};
    for_each_target(j, [&](float w, int64_t k, int64_t) {
      const double gap = probability(asides[1 + j].odds) - probability(asides[k].odds);
      sum.own += w * (p.beta - gap);
      sum.label += w * gap;
    });
    return sum;
  }

  // Sum of the weights of student j's divergences.
  double weight_of_targets(int64_t j) const {
    if (!pairs) return 1.0;
    double sum = 0;
    for (int64_t i = 0; i < p.sources(); ++i) sum += p.mixing[j * p.sources() + i];
    return sum;
  }

  // The factor that makes kd * softmax of teacher k's exponentials in a tile. `kept`: they are relative to the tile's
  // maximum, else to the row's.
  double teacher_factor(int64_t tile, int64_t k, double kd, bool kept) const {
    return (kept ? tile_sums[tile * l.members + k].factor : 1.0) * kd / row_sums[k].at_t;
  }

  // Writes to `less` what is subtracted in student j's gradient: the part of its targets and that of the labels.
  void combine(int64_t tile, int64_t j, int64_t padded, double kd, double labels, double learning, bool kept) {
    fill(less, 0, padded);
    add_targets(tile, j, padded, kd, kept);
    add_labels(tile, j, padded, labels, learning, kept);
  }

  // Adds the part of student j's targets to `less`.
  void add_targets(int64_t tile, int64_t j, int64_t padded, double kd, bool kept) {
    for_each_target(j, [&](float w, int64_t k, int64_t at) {
      const bool differences = p.divergence == Divergence::reverse || p.divergence == Divergence::js;
      if (differences) return add_divergence(tile, j, padded, -w * kd, k, at);
      if (row_sums[k].at_t == 0) return;  // the label's class is the only one
      const bool reloaded = !kept && pairs && k <= p.students;
      const float* e = reloaded ? student_shifted(k - 1) : slot(tile, k);
      add_scaled(less, e, static_cast<float>(w * teacher_factor(tile, k, kd, kept)), padded);
    });
  }

  // Adds to `less` `labels` times the spread part of the label, less the part that the ensemble's own cross-entropy adds.
  void add_labels(int64_t tile, int64_t j, int64_t padded, double labels, double learning, bool kept) {
    if (rest_ == Rest::spread) add_scaled(less, label, static_cast<float>(labels), padded);
    if (!learns) return;
    const double moved = asides ? asides[0].others_at_1 : kept ? at_1_factor(tile, 0) : 1.0;
    const double own = learning * weight(j) * label_total_ * moved / row_sums[0].at_1;
    add_scaled(less, at_1, static_cast<float>(-own), padded);
  }

  // A member's logits in a tile that has been loaded again, as its softmax at T.
  Scores scores(int64_t tile, int64_t k) const {
    const float share = static_cast<float>(1 / row_sums[k].at_t);
    if (k == 0) return {mixed, 0, share, rate(k)};
    if (k > p.students) return {extra_shifted(k - 1 - p.students), 0, share, rate(k)};
    return {slot(tile, k), shift(row_sums[k].max), share, rate(k)};
  }

  // Adds the terms of the tile to the sums of the Jensen-Shannon divergences.
  void add_js_sums(int64_t tile, int64_t padded) {
    for (int64_t j = 0; j < p.students; ++j) {
      for_each_target(j, [&](float, int64_t k, int64_t at) {
        const auto [of_target, of_student] =
            js_sums(scores(tile, k), scores(tile, 1 + j), padded, static_cast<float>(p.beta));
        row_js[at].of_target += of_target;
        row_js[at].of_student += of_student;
      });
    }
  }

  // Adds kd/T times the gradient of a reverse or Jensen-Shannon divergence to `less`.
  void add_divergence(int64_t tile, int64_t j, int64_t padded, double kd, int64_t k, int64_t at) {
    const Scores target = scores(tile, k), student = scores(tile, 1 + j);
    if (p.divergence == Divergence::js) {
      const float factor = static_cast<float>(kd * (1 - p.beta));
      add_js(less, target, student, padded, static_cast<float>(p.beta), factor,
             static_cast<float>(row_js[at].of_student));
    } else {
      // log q/t - KL(q || t) is the distance of the exponents' difference from its mean.
      const double at_t = row_sums[1 + j].at_t, cross = pairs ? row_pairs[at] : row_sums[1 + j].cross;
      add_reverse(less, target, student, padded, static_cast<float>(kd / at_t),
                  static_cast<float>(cross / (p.temperature * at_t)));
    }
  }
};

}  // namespace
}  // namespace oekd::OEKD_ISA
