// The kernel of the ensemble distillation loss for rows that are adjacent in memory while their classes are apart, as
// in images of labels, [B, C, H, W]. Compiled once for each instruction set (setup.py).
//
// A block of rows is copied to scratch, [members, classes, rows], a run of adjacent rows at a time, so that each logit
// is read from memory once. The distance between the classes is often a power of two, whose addresses share a few
// sets of the caches; in scratch it is not. Then each vector of LANES rows passes through all steps in the first-level
// cache: maxima, exponentials and their sums, losses, and the gradients, which replace the logits in scratch. They are
// written to memory a run of rows at a time.
//
// The formulas are those of ensemble_kd_kernel.cpp. Sums over classes are in float for 4 classes at a time and in
// double beyond, since a lane adds up all classes of its row. The loops copy what they read of an object, since stores
// of vectors may change any object for all that the compiler knows.
#include "cpu/ensemble_kd/ensemble_kd.h"
#include "cpu/ensemble_kd/ensemble_kd_lanes_rows.h"
#include "cpu/ensemble_kd/ensemble_kd_lanes_standardised.h"

namespace oekd::OEKD_ISA {
namespace {

template <int POWER, bool LABELS>
class Lanes : LaneRows {
 public:
  Lanes(const KDProblem& problem, void* scratch) : LaneRows(problem, scratch) {}

  void run(int64_t begin, int64_t end, double* sums, int64_t* correct) {
    for (int64_t row = begin; row < end;) {
      const int64_t n = load_block(row, end);
      for (int64_t at = 0; at < n; at += LANES) run_vector(row + at, at, n - at < LANES ? n - at : LANES);
      if (p.grads) store_block(row, n);
      row += n;
    }
    add_sums(sums, correct);
  }

 private:
  void run_vector(int64_t row, int64_t at, int64_t n) {
    start(row, at, n);
    const Wide teacher = p.targets == Targets::ensemble ? of_ensemble() : of_teacher();
    for (int64_t j = 0; j < p.students; ++j) {
      float* z = plane(j);
      const LaneStandard own = scale_of(z, l.pitch, maxima[j]);
      const Member student = exponentials(z, maxima[j], own);
      add_student(j, student, teacher);
      if (p.grads) gradients(z, student, teacher, own);
    }
    finish_row_losses();
  }

  // Computes the ensemble's statistics, and its exponentials as those of the target. Returns their sums at T.
  Wide of_ensemble() {
    const Largest largest = largest_of(mixed, LANES);
    const vf scale = scale_of(mixed, LANES, largest).scale;
    const Member ensemble = of_mean(largest, [=, inverse = inv_t, d_at = shifted, e_at = exps](int64_t c, vf d) {
      const vf own = scaled(d, scale), e = exp_nonpositive(own * inverse);
      store(d_at + c * LANES, own);
      store(e_at + c * LANES, e);
      return Pair{e, exp_at_1<POWER>(d, e)};
    });
    add_ensemble(ensemble);
    return ensemble.at_t;
  }

  // Computes the external teacher's exponentials, and the ensemble's statistics. Returns the sums of the former at T.
  Wide of_teacher() {
    if (p.target) {
      const Largest largest = largest_of(mixed, LANES);
      add_ensemble(of_mean(largest, [&](int64_t, vf d) { return Pair{vf{}, exp_nonpositive(d)}; }));
    }
    const float *z = plane(p.students), inverse = inv_t;
    float *const d_at = shifted, *const e_at = exps;
    const int64_t classes = p.classes, pitch = l.pitch;
    Largest largest{splat(-INFINITY), {}, {}};
    for (int64_t c = 0; c < classes; ++c) largest.max = max(load<vf>(z + c * pitch), largest.max);
    const vf most = shift(largest.max), scale = scale_of(z, pitch, largest).scale;
    Wide totals[1] = {};
    sum_classes(classes, totals, [&](int64_t c, vf (&s)[1]) {
      const vf d = scaled(load<vf>(z + c * pitch) - most, scale);
      const vf e = exp_nonpositive(d * inverse);
      store(d_at + c * LANES, d);
      store(e_at + c * LANES, e);
      s[0] += e;
    });
    return totals[0];
  }

  struct Pair { vf at_t, at_1; };

  static vf scaled(vf d, vf scale) {
    if constexpr (POWER == APART) return d * scale;
    return d;
  }

  LaneStandard scale_of(const float* z, int64_t pitch, const Largest& largest) const {
    if constexpr (POWER == APART) return standard_of(z, pitch, p.classes, shift(largest.max));
    LaneStandard none{};
    return none;
  }

  // Statistics of the mean of the students' logits; `exponentials` maps a shifted logit to its exponentials.
  template <class Exponentials>
  Member of_mean(const Largest& largest, const Exponentials& exponentials) {
    Member mean;
    static_cast<Largest&>(mean) = largest;
    const vf most = shift(mean.max);
    const float *const z = mixed, *const v = label;
    Wide totals[3] = {};
    sum_classes(p.classes, totals, [&](int64_t c, vf (&s)[3]) {
      const vf d = load<vf>(z + c * LANES) - most;
      const Pair e = exponentials(c, d);
      s[0] += e.at_t;
      s[1] += e.at_1;
      if constexpr (LABELS) s[2] += label_term(v + c * LANES, d);
    });
    mean.at_t = totals[0];
    mean.at_1 = totals[1];
    mean.labels = totals[2];
    return mean;
  }

  static vf label_term(const float* label, vf d) {
    const vf v = load<vf>(label);
    return v == vf{} ? vf{} : v * d;  // 0 where the logit is -inf too
  }

  // Replaces a student's logits by e^((z - max)/T).
  Member exponentials(float* z, const Largest& largest, const LaneStandard& own) {
    Member student;
    static_cast<Largest&>(student) = largest;
    const vf most = shift(student.max);
    const int64_t pitch = l.pitch;
    const float inverse = inv_t, *const target = shifted, *const teacher = exps, *const v = label;
    float *const at_1 = ones, *const z_at = standard;
    const vf scale = own.scale, center = own.mean;
    Wide totals[LABELS ? 4 : 3] = {};
    sum_classes(p.classes, totals, [&](int64_t c, vf (&s)[LABELS ? 4 : 3]) {
      float* at = z + c * pitch;
      const vf d = load<vf>(at) - most;
      const vf x = scaled(d, scale), e = exp_nonpositive(x * inverse), e1 = exp_at_1<POWER>(d, e);
      store(at, e);
      if constexpr (POWER == APART) store(z_at + c * LANES, (d - center) * scale);
      if constexpr (POWER <= 0) store(at_1 + c * LANES, e1);
      s[0] += e;
      s[1] += e1;
      s[2] += cross_term(load<vf>(teacher + c * LANES), load<vf>(target + c * LANES), x);
      if constexpr (LABELS) s[3] += label_term(v + c * LANES, d);
    });
    student.at_t = totals[0];
    student.at_1 = totals[1];
    student.cross = totals[2];
    student.labels = LABELS ? totals[LABELS ? 3 : 0] : Wide{};
    return student;
  }

  // Replaces a student's exponentials by its gradients.
  void gradients(float* z, const Member& student, const Wide& teacher, const LaneStandard& own) {
    vf a, b, c, labels;
    {
      vd wide[4][2];
      for (int h = 0; h < 2; ++h) {
        const vd ce = ce_scale.half[h] * (p.target ? p.ce_weight : 0.0);
        const vd kd = kd_scale.half[h] * (p.kd_weight * p.temperature);
        wide[0][h] = ce * label_total.half[h] / student.at_1.half[h];
        wide[1][h] = kd / student.at_t.half[h];
        wide[2][h] = kd / teacher.half[h];
        wide[3][h] = ce;
      }
      a = to_float(wide[0][0], wide[0][1]);
      b = to_float(wide[1][0], wide[1][1]);
      c = to_float(wide[2][0], wide[2][1]);
      labels = to_float(wide[3][0], wide[3][1]);
    }
    const int64_t classes = p.classes, pitch = l.pitch;
    const float *const targets = exps, *const v = label, *const at_1 = ones;
    if constexpr (POWER == APART) {
      toward_targets(z, pitch, targets, standard, classes, b, c, own);
      b = splat(1.0f);
      c = vf{};
    }
    for (int64_t i = 0; i < classes; ++i) {
      float* at = z + i * pitch;
      const vf e = load<vf>(at);
      vf e1;
      if constexpr (POWER <= 0) e1 = load<vf>(at_1 + i * LANES);
      if constexpr (POWER > 0) e1 = power<POWER>(e);
      vf less = load<vf>(targets + i * LANES) * c;
      if constexpr (LABELS) less += load<vf>(v + i * LANES) * labels;
      store(at, e1 * a + (e * b - less));
    }
    if (p.target) subtract_hits(z);
  }
};

template <int POWER>
void run_lanes(const KDProblem& p, int64_t begin, int64_t end, void* scratch, double* sums, int64_t* correct) {
  if (has_rest(p)) return Lanes<POWER, true>(p, scratch).run(begin, end, sums, correct);
  Lanes<POWER, false>(p, scratch).run(begin, end, sums, correct);
}

int64_t piece_of(const KDProblem& p) {
  constexpr int64_t PIECE = int64_t{1} << 18;  // elements of all students in one piece of work
  const int64_t rows = lane_layout(p).rows;
  return round_up(PIECE / (p.students * p.classes) + 1, rows);
}

int64_t scratch_bytes(const KDProblem& p) { return lane_layout(p).bytes; }

void rows(const KDProblem& p, int64_t begin, int64_t end, void* scratch, double* sums, int64_t* correct) {
  const FlushToZero guard;
  switch (power_of(p)) {
    case APART: run_lanes<APART>(p, begin, end, scratch, sums, correct); break;
    case 1: run_lanes<1>(p, begin, end, scratch, sums, correct); break;
    case 2: run_lanes<2>(p, begin, end, scratch, sums, correct); break;
    case 3: run_lanes<3>(p, begin, end, scratch, sums, correct); break;
    case 4: run_lanes<4>(p, begin, end, scratch, sums, correct); break;
    default: run_lanes<0>(p, begin, end, scratch, sums, correct);
  }
  if (p.stream_stores) finish_streams();
}

}  // namespace

const KDKernel ensemble_kd_lanes_kernel{piece_of, scratch_bytes, rows};

}  // namespace oekd::OEKD_ISA
