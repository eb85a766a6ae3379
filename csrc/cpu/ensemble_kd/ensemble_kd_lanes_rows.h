// Blocks of adjacent rows in scratch memory, and a vector of LANES of them: labels, sums and losses.
#pragma once

#include <math.h>

#include "cpu/ensemble_kd/ensemble_kd_elements.h"
#include "cpu/ensemble_kd/ensemble_kd_wide.h"
#include "cpu/simd/log.h"

namespace oekd::OEKD_ISA {
namespace {

struct Largest {
  vf max, at_target;  // the largest logit, and the target's
  vi first;           // first class with the largest logit
};

// Sums of a student or the ensemble over the classes of each row, relative to `max`.
struct Member : Largest {
  Wide at_t, at_1;  // sums of e^((z - max)/T) and e^(z - max)
  Wide cross;       // sum e^((t - maxt)/T) ((t - maxt) - (z - max)) with the target's logits t
  Wide labels;      // sum v (z - max), where v is the spread part of the row's label
};

// Whether labels have a part beside their hit.
inline bool has_rest(const KDProblem& p) { return p.probabilities || (p.target && p.label_smoothing > 0); }

struct LaneLayout {
  int64_t rows, pitch;  // rows of a block; floats from a class of a plane to the next
  int64_t planes;       // matrices of a block: students, the external teacher, probabilities
  int64_t block, shifted, exps, ones, standard, label, even, maxima, sums, correct;  // offsets in bytes
  int64_t bytes;
};

inline LaneLayout lane_layout(const KDProblem& p) {
  constexpr int64_t BLOCK_BYTES = int64_t{256} << 10, FLOATS = LINE / 4, MOST_ROWS = 256;
  LaneLayout l{};
  l.planes = p.students + p.num_teachers + (p.probabilities != nullptr);
  l.rows = BLOCK_BYTES / (4 * l.planes * p.classes) / FLOATS * FLOATS;
  l.rows = l.rows < FLOATS ? FLOATS : l.rows > MOST_ROWS ? MOST_ROWS : l.rows;
  l.pitch = (l.rows / FLOATS | 1) * FLOATS;  // an odd number of cache lines, so that classes use all sets
  const auto take = [&](int64_t bytes) {
    const int64_t offset = l.bytes;
    l.bytes += round_up(bytes, LINE);
    return offset;
  };
  const int64_t vectors = p.classes * LANES * 4;
  l.block = take(l.planes * p.classes * l.pitch * 4);
  l.shifted = take(vectors);
  l.exps = take(vectors);
  l.ones = take(power_of(p) > 0 ? 0 : vectors);
  l.standard = take(p.standardise_logits ? vectors : 0);
  l.label = take(has_rest(p) ? vectors : 0);
  l.even = take(has_rest(p) ? p.classes * 4 : 0);
  l.maxima = take(p.students * int64_t{sizeof(Largest)});
  l.sums = take((2 * p.students + 1) * int64_t{sizeof(Wide)});
  l.correct = take((p.students + 1) * int64_t{sizeof(vi)});
  return l;
}

class LaneRows {
 protected:
  LaneRows(const KDProblem& problem, void* scratch) : p(problem), l(lane_layout(problem)) {
    char* base = static_cast<char*>(scratch);
    block = reinterpret_cast<float*>(base + l.block);
    shifted = reinterpret_cast<float*>(base + l.shifted);
    mixed = shifted;
    exps = reinterpret_cast<float*>(base + l.exps);
    ones = reinterpret_cast<float*>(base + l.ones);
    standard = reinterpret_cast<float*>(base + l.standard);
    label = reinterpret_cast<float*>(base + l.label);
    even = reinterpret_cast<float*>(base + l.even);
    maxima = reinterpret_cast<Largest*>(base + l.maxima);
    sums = reinterpret_cast<Wide*>(base + l.sums);
    correct = reinterpret_cast<vi*>(base + l.correct);
    inv_t = static_cast<float>(1.0 / p.temperature);
    for (int64_t k = 0; k <= 2 * p.students; ++k) sums[k] = {};
    for (int64_t j = 0; j <= p.students; ++j) correct[j] = vi{};
    if (has_rest(p)) prepare_even();
  }

  const KDProblem& p;
  const LaneLayout l;
  float* block;     // [planes, classes, pitch]
  float* mixed;     // [classes, LANES] zE; then `shifted` in the same place
  float* shifted;   // [classes, LANES] the target's logits less their maximum, over sd if they are standardised
  float* exps;      // [classes, LANES] their exponentials at T
  float* ones;      // [classes, LANES] a student's exponentials at T = 1, if they are no power of those at T
  float* standard;  // [classes, LANES] a student's standardised logits
  float* label;     // [classes, LANES] v, the spread part of the rows' labels
  float* even;      // [classes] v of one-hot labels
  Largest* maxima;  // [S]
  Wide* sums;       // [2 S + 1] cross-entropies, divergences, the ensemble's cross-entropy
  vi* correct;      // [S + 1]
  float inv_t;

  // Factors of the current vector of rows. In lanes of ignored rows, and beyond the last row, logits and factors are 0.
  Wide ce_scale, kd_scale, label_total, hit;  // label_total is the sum of y = hit e_target + v
  Wide keep;                                  // 1 in lanes of rows that count, else 0

  static vf shift(vf max) { return max == splat(-INFINITY) ? vf{} : max; }

  // Logits of student j, the external teacher (S) or labels (the last plane), for the current vector.
  float* plane(int64_t k) const { return block + k * p.classes * l.pitch + at_; }

  // Copies rows [row, end) to scratch, at most a block and up to the next outer index. Returns their number.
  int64_t load_block(int64_t row, int64_t end) {
    const int64_t inner = row % p.inner;
    int64_t n = p.inner - inner < end - row ? p.inner - inner : end - row;
    n = n < l.rows ? n : l.rows;
    at_ = 0;
    for (int64_t j = 0; j < p.students; ++j) copy_plane(p.logits[j], p.dtype, row, n, plane(j));
    for (int64_t k = 0; k < p.num_teachers; ++k) {
      copy_plane(p.teachers[k].matrix, p.teachers[k].dtype, row, n, plane(p.students + k));
    }
    if (p.probabilities) copy_plane(p.probabilities->matrix, p.probabilities->dtype, row, n, plane(l.planes - 1));
    return n;
  }

  void store_block(int64_t row, int64_t n) {
    at_ = 0;
    with_dtype(p.dtype, [&]<class T>(T) {
      for (int64_t j = 0; j < p.students; ++j) {
        T* dst = address<T>(p.grads[j], row);
        const float* src = plane(j);
        const int64_t classes = p.classes, pitch = l.pitch, stride = p.grads[j].class_stride;
        const bool streamed = p.stream_stores;
        for (int64_t c = 0; c < classes; ++c) put(dst + c * stride, n, src + c * pitch, streamed);
      }
    });
  }

  // Takes up n rows from `row` on, which are at `at` in the block: their labels, the students' maxima, and the mean.
  void start(int64_t row, int64_t at, int64_t n) {
    row_ = row;
    at_ = at;
    n_ = n;
    losses_ = {};
    if (read_labels()) clear_ignored();
    mix();
    if (has_rest(p)) spread_labels();
  }

  Largest largest_of(const float* z, int64_t pitch) const {
    Largest found{splat(-INFINITY), {}, vi{} - 1};
    const int64_t classes = p.classes;
    for (int64_t c = 0; c < classes; ++c) see(found, c, load<vf>(z + c * pitch));
    found.at_target = at_target(z, pitch);
    return found;
  }

  void add_ensemble(const Member& ensemble) {
    if (!p.target) return;
    const Wide ce = cross_entropy(ensemble);
    sums[2 * p.students].add(ce);
    correct[p.students] -= hits(ensemble);
    if (p.row_statistics.loss) put_rows(p.row_statistics.ensemble_ce, ce);
  }

  void add_student(int64_t j, const Member& student, const Wide& teacher) {
    Wide kd, ce{};
    for (int h = 0; h < 2; ++h) {
      const vd ratio = student.at_t.half[h] / teacher.half[h];
      const vd kl = student.cross.half[h] / (teacher.half[h] * p.temperature) + log_of(ratio);
      kd.half[h] = (kl < vd{} ? vd{} : kl) * (p.temperature * p.temperature) * keep.half[h];
    }
    sums[p.students + j].add(kd);
    if (p.target) {
      ce = cross_entropy(student);
      sums[j].add(ce);
      correct[j] -= hits(student);
    }
    if (!p.row_statistics.loss) return;
    for (int h = 0; h < 2; ++h) {
      losses_.half[h] += kd.half[h] * p.kd_weight;
      if (p.target) losses_.half[h] += ce.half[h] * p.ce_weight;
    }
    put_rows(p.row_statistics.kd + j * p.rows, kd);
    put_rows(p.row_statistics.ce + j * p.rows, ce);
  }

  void finish_row_losses() const {
    if (!p.row_statistics.loss) return;
    put_rows(p.row_statistics.loss, losses_);
    if (!p.target) put_rows(p.row_statistics.ensemble_ce, Wide{});
  }

  // Subtracts what the target's class has more than others in a student's gradients.
  void subtract_hits(float* g) const {
    for (int64_t i = 0; i < n_; ++i) {
      const double scaled = ce_scale.half[i / HALF][i % HALF] * p.ce_weight * hit.half[i / HALF][i % HALF];
      g[index_[i] * l.pitch + i] -= static_cast<float>(scaled);
    }
  }

  void add_sums(double* totals, int64_t* counts) const {
    for (int64_t k = 0; k <= 2 * p.students; ++k) {
      for (int i = 0; i < LANES; ++i) totals[k] += sums[k].half[i / HALF][i % HALF];
    }
    for (int64_t j = 0; j <= p.students; ++j) {
      for (int i = 0; i < LANES; ++i) counts[j] += correct[j][i];
    }
  }

 private:
  static constexpr int HALF = LANES / 2;

  int64_t row_ = 0, at_ = 0, n_ = 0;
  int64_t index_[LANES];  // target of each lane; 0 where there is none
  vi targets_, spread_;   // the same; whether the label is not one-hot
  Wide losses_;
  double even_total_ = 0;

  template <class T>
  T* address(const Matrix& m, int64_t row) const {
    return static_cast<T*>(m.data) + row / p.inner * m.outer_stride + row % p.inner * m.inner_stride;
  }

  // Copies n rows of all classes to a plane, and pads them with zeros to whole vectors. Prefetches the rows that the
  // next block copies, because the run of a class is too short for the hardware to do so.
  void copy_plane(const Matrix& m, Scalar dtype, int64_t row, int64_t n, float* dst) const {
    with_dtype(dtype, [&]<class T>(T) {
      const T* src = address<const T>(m, row);
      const int64_t classes = p.classes, pitch = l.pitch, stride = m.class_stride;
      for (int64_t c = 0; c < classes; ++c, src += stride) {
        float* to = dst + c * pitch;
        int64_t i = 0;
        for (; i + LANES <= n; i += LANES) {
          __builtin_prefetch(src + n + i, 0, 2);
          store(to + i, load_float(src + i));
        }
        if (i < n) store(to + i, load_part(src + i, n - i, 0.0f));
      }
    });
  }

  void prepare_even() {
    const double share = p.label_smoothing / static_cast<double>(p.classes);
    for (int64_t c = 0; c < p.classes; ++c) {
      const double v = share * (p.class_weights ? p.class_weights[c] : 1.0);
      even[c] = static_cast<float>(v);
      even_total_ += v;
    }
    if (!p.class_weights) even_total_ = p.label_smoothing;
  }

  // Returns whether rows are ignored.
  bool read_labels() {
    bool ignored = false;
    double counts[LANES] = {}, hits[LANES] = {}, scales[LANES] = {};
    int32_t targets[LANES], spread[LANES] = {};
    for (int64_t i = 0; i < LANES; ++i) {
      index_[i] = 0;
      targets[i] = -1;
      if (i >= n_) continue;
      const int64_t row = row_ + i;
      if (!p.counts(row)) {
        ignored = true;
        continue;
      }
      counts[i] = 1;
      scales[i] = p.row_scales ? p.row_scales[row] : 1.0;
      if (!p.target) continue;
      index_[i] = targets[i] = static_cast<int32_t>(p.target[row]);
      spread[i] = p.spread && p.spread[row] ? -1 : 0;
      if (!spread[i]) hits[i] = (1 - p.label_smoothing) * (p.class_weights ? p.class_weights[index_[i]] : 1.0);
    }
    targets_ = load<vi>(targets);
    spread_ = load<vi>(spread);
    keep = load<Wide>(counts);
    label_total = hit = load<Wide>(hits);
    const Wide factors = load<Wide>(scales);
    for (int h = 0; h < 2; ++h) {
      ce_scale.half[h] = factors.half[h] * p.ce_scale;
      kd_scale.half[h] = factors.half[h] * p.kd_scale;
    }
    return ignored;
  }

  // Sets the logits of ignored rows, which may be NaN, to 0.
  void clear_ignored() const {
    const vi counts = bits<vi>(to_float(keep.half[0], keep.half[1])) != vi{};
    for (int64_t k = 0; k < p.students + p.num_teachers; ++k) {
      for (int64_t c = 0; c < p.classes; ++c) {
        float* z = plane(k) + c * l.pitch;
        store(z, bits<vf>(bits<vi>(load<vf>(z)) & counts));
      }
    }
  }

  static void see(Largest& found, int64_t c, vf z) {
    const auto larger = z > found.max;
    found.first = larger ? vi{} + static_cast<int32_t>(c) : found.first;
    found.max = larger ? z : found.max;
  }

  vf at_target(const float* z, int64_t pitch) const {
    float found[LANES];
    for (int i = 0; i < LANES; ++i) found[i] = z[index_[i] * pitch + i];
    return load<vf>(found);
  }

  // Finds the students' maxima, and mixes the logits of the ensemble.
  void mix() {
    const int64_t classes = p.classes, pitch = l.pitch;
    float* const sum = mixed;
    for (int64_t c = 0; c < classes; ++c) store(sum + c * LANES, vf{});
    for (int64_t j = 0; j < p.students; ++j) {
      const float* z = plane(j);
      const float w = p.ensemble_weights ? p.ensemble_weights[j] : 1.0f;
      Largest found{splat(-INFINITY), {}, vi{} - 1};
      if (w == 0) found = largest_of(z, pitch);  // excluded, even where its logit is -inf
      for (int64_t c = 0; w != 0 && c < classes; ++c) {
        const vf x = load<vf>(z + c * pitch);
        store(sum + c * LANES, x * w + load<vf>(sum + c * LANES));
        see(found, c, x);
      }
      found.at_target = at_target(z, pitch);
      maxima[j] = found;
    }
    if (p.ensemble_weights) return;
    // The mean is a sum and one division, as in PyTorch: equal sums stay equal, and the result is rounded once.
    const float students = static_cast<float>(p.students);
    for (int64_t c = 0; c < classes; ++c) store(sum + c * LANES, load<vf>(sum + c * LANES) / students);
  }

  // Writes the spread parts of the rows' labels, and adds them to the sums of the labels.
  void spread_labels() {
    const float keep_share = static_cast<float>(1 - p.label_smoothing);
    const float share = static_cast<float>(p.label_smoothing / static_cast<double>(p.classes));
    const float* given = p.probabilities ? plane(l.planes - 1) : nullptr;
    const float *const weights = p.class_weights, *const one_hot = even;
    float* const to = label;
    const vi spread = spread_;
    const int64_t pitch = l.pitch;
    Wide totals[1] = {};
    sum_classes(p.classes, totals, [&](int64_t c, vf (&s)[1]) {
      vf v = splat(one_hot[c]);
      if (given) {
        const float w = weights ? weights[c] : 1.0f;
        const vf t = (load<vf>(given + c * pitch) * keep_share + share) * w;
        v = spread ? t : v;
        s[0] += t;
      }
      store(to + c * LANES, v);
    });
    double own[LANES];
    for (int i = 0; i < LANES; ++i) own[i] = spread_[i] ? totals[0].half[i / HALF][i % HALF] : even_total_;
    label_total.add(load<Wide>(own));
  }

  // -sum y log p of the rows that count.
  Wide cross_entropy(const Member& member) const {
    const Wide max = wide(member.max), at_target = wide(member.at_target);
    Wide ce;
    for (int h = 0; h < 2; ++h) {
      const vd log_sum = log_of(member.at_1.half[h]);
      // Terms with y = 0 are 0, also where p is 0.
      const vd plain = hit.half[h] * (log_sum + (max.half[h] - at_target.half[h]));
      const vd rest = (label_total.half[h] - hit.half[h]) * log_sum - member.labels.half[h];
      ce.half[h] = ((hit.half[h] == vd{} ? vd{} : plain) + rest) * keep.half[h];
    }
    return ce;
  }

  // 1 in lanes whose first largest logit is the target.
  vi hits(const Member& member) const { return member.first == targets_ ? vi{} - 1 : vi{}; }

  void put_rows(float* rows, const Wide& values) const {
    const vf x = to_float(values.half[0], values.half[1]);
    __builtin_memcpy(rows + row_, &x, n_ * sizeof(float));
  }
};

}  // namespace
}  // namespace oekd::OEKD_ISA
