// One row of the ensemble distillation loss: its scratch memory, and the sums of its tiles joined to losses.
#pragma once

#include <math.h>

#include "cpu/ensemble_kd/ensemble_kd_layout.h"

namespace oekd::OEKD_ISA {
namespace {

class Row {
 protected:
  Row(const KDProblem& problem, void* scratch)
      : p(problem),
        l(layout_of(problem)),
        pairs(p.targets == Targets::probabilities),
        learns(p.ensemble_ce_weight != 0) {
    char* base = static_cast<char*>(scratch);
    mixed = reinterpret_cast<float*>(base + l.shifted);
    at_1 = reinterpret_cast<float*>(base + l.at_1);
    less = reinterpret_cast<float*>(base + l.less);
    result = reinterpret_cast<float*>(base + l.result);
    label = reinterpret_cast<float*>(base + l.label);
    tile_labels = reinterpret_cast<double*>(base + l.tile_labels);
    exps = reinterpret_cast<float*>(base + l.exps);
    tile_sums = reinterpret_cast<TileSums*>(base + l.tile_sums);
    row_sums = reinterpret_cast<RowSums*>(base + l.row_sums);
    tile_pairs = reinterpret_cast<double*>(base + l.tile_pairs);
    row_pairs = reinterpret_cast<double*>(base + l.row_pairs);
    row_js = reinterpret_cast<JensenShannon*>(base + l.row_js);
    inv_t = static_cast<float>(1.0 / p.temperature);
    if (power_of(p) == APART) standards = reinterpret_cast<Standard*>(base + l.standards);
    moments = reinterpret_cast<Moments*>(base + l.moments);
    if (p.divergence == Divergence::decoupled) asides = reinterpret_cast<Aside*>(base + l.asides);
  }

  const KDProblem& p;
  const Layout l;
  const bool pairs, learns;  // targets mix probabilities; the ensemble's cross-entropy is part of the loss
  float* mixed;              // [1 + extra + ..., width] zE, then zE - max; then other members, see layout_of
  float* at_1;               // [width] e^(zE - max)
  float* less;               // [width] what is subtracted in a student's gradient, if it is more than one softmax
  float* result;             // [width] gradients of a student whose exponentials are still needed
  float* label;              // [width] v, the spread part of the row's label
  double* tile_labels;       // [tiles] sums of v
  float* exps;               // [slots, members, width]
  TileSums* tile_sums;       // [tiles, members]
  RowSums* row_sums;         // [members]
  double* tile_pairs;        // [tiles, S, sources] cross sums of each student with each source of its target
  double* row_pairs;         // [S, sources]
  JensenShannon* row_js;     // [S], or [S, sources] for mixed probabilities
  float inv_t;
  Standard* standards = nullptr;  // [members] if softmaxes at T are apart
  Moments* moments;               // [members]
  Aside* asides = nullptr;        // [members] with the decoupled divergence
  // The label of a row is y = hit e_target + v. `smoothed`: v is label_smoothing / classes for all classes.
  enum class Rest { none, smoothed, spread };

  int64_t row_ = 0, target_ = -1;   // this row and its label; -1 without labels
  int64_t outer_ = 0, inner_ = 0;   // row_ = outer_ * p.inner + inner_
  const float* weights_ = nullptr;  // [S] weights of this row, or null for the mean
  Rest rest_ = Rest::none;
  double hit_ = 0, label_total_ = 0;      // label_total_ is the sum of y
  double ce_scale_ = 0, kd_scale_ = 0;  // factors of this row's gradients

  void go_to(int64_t row) {
    row_ = row;
    outer_ = row / p.inner;
    inner_ = row % p.inner;
  }
  void go_on() {
    ++row_;
    if (++inner_ < p.inner) return;
    inner_ = 0;
    ++outer_;
  }

  void start() {
    target_ = p.target ? p.target[row_] : -1;
    weights_ = p.ensemble_weights ? p.ensemble_weights + row_ * p.weights_row : nullptr;
    const double scale = p.row_scales ? p.row_scales[row_] : 1.0;
    ce_scale_ = scale * p.ce_scale;
    kd_scale_ = scale * p.kd_scale;
    if (p.target) start_label();
    for (int64_t k = 0; k < l.members; ++k) {
      row_sums[k] = {};
      row_sums[k].max = row_sums[k].largest = -INFINITY;
    }
    if (p.divergence != Divergence::js) return;
    for (int64_t i = 0; i < p.students * (pairs ? p.sources() : 1); ++i) row_js[i] = {};
  }

  void start_label() {
    const bool spread = p.spread && p.spread[row_], smooth = p.label_smoothing > 0;
    rest_ = spread || (smooth && p.class_weights) ? Rest::spread : smooth ? Rest::smoothed : Rest::none;
    hit_ = spread ? 0.0 : (1 - p.label_smoothing) * (p.class_weights ? p.class_weights[target_] : 1.0);
    label_total_ = rest_ == Rest::smoothed ? 1.0 : hit_;  // join_tiles adds the sum of a spread part
  }

  template <class T>
  T* address(const Matrix& m, int64_t tile) const {
    return static_cast<T*>(m.data) + outer_ * m.outer_stride + inner_ * m.inner_stride + tile * l.width;
  }

  float* slot(int64_t tile, int64_t member) const {
    return exps + ((l.slots > 1 ? tile : 0) * l.members + member) * l.width;
  }
  int64_t columns(int64_t tile) const {
    const int64_t left = p.classes - tile * l.width;
    return left < l.width ? left : l.width;
  }
  float* extra_shifted(int64_t x) const { return mixed + (1 + x) * l.width; }
  float* student_shifted(int64_t j) const { return mixed + (1 + l.extra + j) * l.width; }
  float* mixed_teacher() const { return extra_shifted(l.extra); }

  // The member whose softmax is student j's target. Not for mixed probabilities.
  int64_t target_of(int64_t j) const {
    return p.targets == Targets::ensemble ? 0 : p.targets == Targets::teacher ? p.students + 1 : p.students + 1 + j;
  }
  // Calls use(weight, member, index) for the targets of student j; the index is that in row_pairs and row_js.
  template <class Use>
  void for_each_target(int64_t j, const Use& use) const {
    if (!pairs) return use(1.0f, target_of(j), j);
    for (int64_t at = j * p.sources(), i = 0; i < p.sources(); ++i, ++at) {
      if (p.mixing[at] != 0) use(p.mixing[at], member_of(i), at);
    }
  }
  // The member of a column of `mixing`, for mixed probabilities.
  int64_t member_of(int64_t source) const { return 1 + source; }

  // What the logits of member k are multiplied by before the softmax at T: 1/sd if they are standardised, else 1.
  float scale(int64_t k) const { return standards ? standards[k].scale : 1.0f; }
  float rate(int64_t k) const { return standards ? static_cast<float>(standards[k].scale / p.temperature) : inv_t; }

  double weight(int64_t j) const { return weights_ ? weights_[j] : 1.0 / static_cast<double>(p.students); }

  // The value to subtract before the exponential. A tile of -inf alone must not give -inf - -inf, which is NaN.
  static float shift(float max) { return max == -INFINITY ? 0.0f : max; }

  // Takes the maximum of a tile into that of the row.
  static void see(const TileSums& tile, RowSums& row) {
    if (tile.max > row.max) row.max = tile.max;
  }

  // Notes the target's logit, and whether it is the first largest so far; z is the tile before it is overwritten.
  void look_up(const float* z, int64_t tile, float tile_max, RowSums& row) const {
    const bool larger = tile_max > row.largest;
    if (larger) row.correct = false;
    const int64_t column = target_ - tile * l.width;
    if (column >= 0 && column < columns(tile)) {
      row.at_target = z[column];
      row.correct = larger && z[column] == tile_max && !contains(z, column, tile_max);
    }
    if (larger) row.largest = tile_max;
  }

  double at_t_factor(int64_t tile, int64_t k) const {
    const float m = tile_sums[tile * l.members + k].max;
    if (l.tiles == 1) return 1.0;
    return m == -INFINITY ? 0.0 : exp((static_cast<double>(m) - row_sums[k].max) * scale(k) / p.temperature);
  }
  double at_1_factor(int64_t tile, int64_t k) const {
    const float m = tile_sums[tile * l.members + k].max;
    if (l.tiles == 1) return 1.0;
    return m == -INFINITY ? 0.0 : exp(static_cast<double>(m) - row_sums[k].max);
  }

  // A member's maximum in a tile less its maximum in the row.
  double above(int64_t tile, int64_t k) const {
    return static_cast<double>(tile_sums[tile * l.members + k].max) - row_sums[k].max;
  }

  // A tile's cross sum of the target k and student j, relative to the row's maxima.
  double joined(int64_t tile, int64_t k, int64_t j, double cross) const {
    const bool reverse = p.divergence == Divergence::reverse;
    const int64_t from = reverse ? 1 + j : k, to = reverse ? k : 1 + j;
    const TileSums& weights = tile_sums[tile * l.members + from];
    if (weights.factor == 0) return 0.0;
    const double moved = l.tiles == 1 ? 0.0 : above(tile, from) * scale(from) - above(tile, to) * scale(to);
    return weights.factor * (cross + weights.at_t * moved);
  }

  // A tile's sum of v (z - max) of a member, relative to the row's maximum.
  double joined_labels(int64_t tile, int64_t k) const {
    const TileSums& sums = tile_sums[tile * l.members + k];
    if (l.tiles == 1 || tile_labels[tile] == 0) return sums.labels;
    return sums.labels + tile_labels[tile] * (static_cast<double>(shift(sums.max)) - shift(row_sums[k].max));
  }

  // Joins the sums of the tiles to the sums of the row.
  void join_tiles() {
    if (pairs) {
      for (int64_t i = 0; i < p.students * p.sources(); ++i) row_pairs[i] = 0;
    }
    for (int64_t tile = 0; tile < l.tiles; ++tile) {
      TileSums* sums = tile_sums + tile * l.members;
      for (int64_t k = 0; k < l.members; ++k) {
        sums[k].factor = at_t_factor(tile, k);
        row_sums[k].at_t += sums[k].factor * sums[k].at_t;
        if (k <= p.students) row_sums[k].at_1 += at_1_factor(tile, k) * sums[k].at_1;
      }
      if (rest_ == Rest::spread) {
        label_total_ += tile_labels[tile];
        for (int64_t k = 0; k <= p.students; ++k) row_sums[k].labels += joined_labels(tile, k);
      }
      for (int64_t j = 0; j < p.students; ++j) {
        if (p.with_weights_grad) row_sums[1 + j].moment += at_1_factor(tile, 0) * sums[1 + j].moment;
        if (!pairs) {
          row_sums[1 + j].cross += joined(tile, target_of(j), j, sums[1 + j].cross);
          continue;
        }
        for (int64_t at = j * p.sources(), i = 0; i < p.sources(); ++i, ++at) {
          if (p.mixing[at] == 0) continue;
          row_pairs[at] += joined(tile, member_of(i), j, tile_pairs[tile * p.students * p.sources() + at]);
        }
      }
    }
  }

  // Adds the label's class, which the sums of the other classes leave out.
  void add_labels_class() {
    for (int64_t k = 0; k < l.members; ++k) {
      RowSums& row = row_sums[k];
      Aside& aside = asides[k];
      const double label = aside.label, others = row.max, most = label > others ? label : others;
      aside.odds = (label - others) * scale(k) / p.temperature - log(row.at_t);
      aside.label_at_1 = label == -INFINITY ? 0.0 : exp(label - most);
      aside.others_at_1 = others == -INFINITY ? 0.0 : exp(others - most);
      if (k > p.students) continue;
      row.at_1 = row.at_1 * aside.others_at_1 + aside.label_at_1;
      if (rest_ == Rest::spread) row.labels -= (label_total_ - hit_) * (most - shift(row.max));
    }
    for (int64_t j = 0; p.with_weights_grad && j < p.students; ++j) {
      const double own = asides[1 + j].label, of_label = own == -INFINITY ? 0.0 : asides[0].label_at_1 * own;
      row_sums[1 + j].moment = row_sums[1 + j].moment * asides[0].others_at_1 + of_label;
    }
  }

  // -sum y log p. Terms with y = 0 are 0, also where p is 0.
  double cross_entropy(const RowSums& row) const {
    const double log_sum = log(row.at_1);
    const double plain = hit_ == 0 ? 0.0 : hit_ * (log_sum + (static_cast<double>(row.largest) - row.at_target));
    switch (rest_) {
      case Rest::none: return plain;
      case Rest::smoothed:
        return plain + p.label_smoothing * (log_sum + row.largest - row.logits / static_cast<double>(p.classes));
      default: return plain + (label_total_ - hit_) * log_sum - row.labels;
    }
  }

  double ensemble_cross_entropy() const {
    RowSums ensemble = row_sums[0];
    for (int64_t j = 0; rest_ == Rest::smoothed && j < p.students; ++j) {
      const double w = weight(j);
      if (w != 0) ensemble.logits += w * row_sums[1 + j].logits;
    }
    return cross_entropy(ensemble);
  }

  // KL(from || to) at temperature T. Rounding can give -1e-9, which becomes 0.
  double divergence(double cross, const RowSums& from, const RowSums& to) const {
    if (asides && from.at_t == 0) return 0;  // there are no other classes
    return at_least_0(cross / (p.temperature * from.at_t) + log(to.at_t / from.at_t));
  }
  static double at_least_0(double x) { return x < 0 ? 0 : x; }

  double divergence_from_target(int64_t j) const {
    const RowSums& student = row_sums[1 + j];
    double sum = 0;
    for_each_target(j, [&](float w, int64_t k, int64_t at) {
      const double cross = pairs ? row_pairs[at] : student.cross;
      switch (p.divergence) {
        case Divergence::forward: sum += w * divergence(cross, row_sums[k], student); break;
        case Divergence::reverse: sum += w * divergence(cross, student, row_sums[k]); break;
        case Divergence::js:
          sum += w * at_least_0(p.beta * row_js[at].of_target + (1 - p.beta) * row_js[at].of_student);
          break;
        case Divergence::decoupled:
          sum += w * at_least_0(binary_divergence(asides[k].odds, asides[1 + j].odds));
          sum += w * p.beta * divergence(cross, row_sums[k], student);
      }
    });
    return sum;
  }

  // Adds the row's losses and hits to the sums that the kernel returns.
  void add_row(double* sums, int64_t* correct) const {
    double loss = 0;
    for (int64_t j = 0; j < p.students; ++j) {
      const RowSums& row = row_sums[1 + j];
      const double kd = p.temperature * p.temperature * divergence_from_target(j);
      const double ce = p.target ? cross_entropy(row) : 0.0;
      sums[p.students + j] += kd;
      sums[j] += ce;
      correct[j] += p.target && row.correct;
      if (!p.row_statistics.loss) continue;
      loss += p.kd_weight * kd + (p.target ? p.ce_weight * ce : 0.0);
      p.row_statistics.kd[j * p.rows + row_] = static_cast<float>(kd);
      p.row_statistics.ce[j * p.rows + row_] = static_cast<float>(ce);
    }
    const double ensemble_ce = p.target ? ensemble_cross_entropy() : 0.0;
    sums[2 * p.students] += ensemble_ce;
    correct[p.students] += p.target && row_sums[0].correct;
    if (!p.row_statistics.loss) return;
    if (learns) loss += p.ensemble_ce_weight * ensemble_ce;
    p.row_statistics.ensemble_ce[row_] = static_cast<float>(ensemble_ce);
    p.row_statistics.loss[row_] = static_cast<float>(loss);
  }

  void clear_statistics() const {
    if (!p.row_statistics.loss) return;
    for (int64_t j = 0; j < p.students; ++j) {
      p.row_statistics.kd[j * p.rows + row_] = p.row_statistics.ce[j * p.rows + row_] = 0;
    }
    p.row_statistics.ensemble_ce[row_] = p.row_statistics.loss[row_] = 0;
  }

  // dL/dw_j = scale * ensemble_ce_weight * (sum y * sum_c pE z_j - sum_c y z_j); terms with a logit of -inf are left out.
  void add_weights_grad(double* sums) const {
    for (int64_t j = 0; j < p.students; ++j) {
      const RowSums& z = row_sums[1 + j];
      const double expected = z.moment == 0 ? 0.0 : label_total_ * (z.moment / row_sums[0].at_1);
      double labels = hit_ * (z.at_target == -INFINITY ? 0.0 : z.at_target);
      if (rest_ == Rest::smoothed) labels += p.label_smoothing * (z.finite / static_cast<double>(p.classes));
      if (rest_ == Rest::spread) labels += z.finite;
      const double grad = ce_scale_ * p.ensemble_ce_weight * (expected - labels);
      sums[j] += grad;
      if (p.gate_grads) p.gate_grads[row_ * p.students + j] = static_cast<float>(grad);
    }
  }
};

}  // namespace
}  // namespace oekd::OEKD_ISA
