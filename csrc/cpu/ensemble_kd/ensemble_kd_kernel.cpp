// The kernel of the ensemble distillation loss, compiled once for each instruction set (setup.py).
//
// A row of all S students is cut into tiles of columns that fit the first-level cache together. The first sweep
// reads each logit once and leaves e^((z - m_t)/T) in scratch (m_t: the tile's own maximum) and the tile's sums.
// The sums of the tiles are then joined to the sums of the row. The second sweep turns the exponentials into
// gradients; it starts with the last tile, which is still cached:
//
//   dL/dz_j = scale * [ ce_weight (p_j - y) + kd_weight T (p_j^T - t) ],    p_j = softmax(z_j),
//   p_j^T = softmax(z_j / T),  t = softmax(zE / T),  zE = sum_j w_j z_j,
//
// where y is the label, one-hot here and in general y = hit e_target + v with a spread part v: smoothing times the
// classes' weights, or probabilities. v is 0, or the same for all classes, or in scratch a tile at a time. p_j is
// multiplied by the sum of y.
//
// For T = 1..4, e^z is the T-th power of e^(z/T): one exponential for each element of a student and of the ensemble.
// For other temperatures, and for rows too long to keep in scratch, the second sweep reads the logits and computes
// their exponentials again.
//
// Other targets t may take the ensemble's place: an external teacher, or for each student its own mixture of the
// logits of students and external teachers. These are further members of a row, each with its own exponentials. Mixed
// probabilities need exponentials of their own only for external teachers. For the other divergences than KL(t || q)
// the second sweep reads the logits again. The ensemble's own cross-entropy adds
// scale * ensemble_ce_weight * w_j (pE - y) to dL/dz_j.
//
// With standardised logits and with the decoupled divergence, the softmaxes at T are apart from those at 1: a sweep of
// their own computes the distillation term's gradient for what they are softmaxes of, and then that for the logits.
// ensemble_kd_standardised.h and ensemble_kd_decoupled.h have the formulas.
#include "cpu/ensemble_kd/ensemble_kd.h"
#include "cpu/ensemble_kd/ensemble_kd_packed.h"
#include "cpu/ensemble_kd/ensemble_kd_row_targets.h"

namespace oekd::OEKD_ISA {
namespace {

template <int POWER, class T>
class Rows : RowTargets {
 public:
  Rows(const KDProblem& problem, void* scratch) : RowTargets(problem, scratch) {}

  void run(int64_t begin, int64_t end, double* sums, int64_t* correct) {
    for (go_to(begin); row_ < end; go_on()) {
      if (!p.counts(row_)) {
        clear_statistics();
        if (p.grads) clear();
        continue;
      }
      start();
      if constexpr (POWER == APART) start_standards();
      first_sweep();
      join_tiles();
      if constexpr (POWER == APART) finish_standards();
      if (p.divergence == Divergence::js) js_sweep();
      add_row(sums, correct);
      if (p.with_weights_grad) add_weights_grad(sums + 2 * p.students + 1);
      if (!p.grads) continue;
      if constexpr (POWER == APART) sweep_apart();
      if constexpr (POWER != APART) second_sweep();
    }
  }

 private:
  // Loads the logits of one tile: the students' into their slots, zE into `mixed`, the other teachers' after it.
  void load_tile(int64_t tile, TileSums* sums) {
    const int64_t n = columns(tile), padded = round_up(n, LANES);
    fill(mixed, 0, padded);
    for (int64_t j = 0; j < p.students; ++j) {
      const T* z = address<T>(p.logits[j], tile);
      const float w = weights_ ? weights_[j] : 1.0f;
      float* dst = slot(tile, 1 + j);
      // A weight of 0 excludes a student, even where its logit is -inf.
      sums[1 + j].max = w == 0 ? take_logits<false>(z, n, w, dst, mixed) : take_logits<true>(z, n, w, dst, mixed);
    }
    for (int64_t c = n; c < padded; ++c) mixed[c] = -INFINITY;
    // The mean is a sum and one division, as in PyTorch: equal sums stay equal, and the result is rounded once.
    sums[0].max = divide_and_max(mixed, padded, weights_ ? 1.0f : static_cast<float>(p.students));
    TileSums* extra = sums + 1 + p.students;
    if (p.targets == Targets::logits) {
      mix_logits(tile, n, padded, extra);
    } else {
      for (int64_t x = 0; x < l.extra; ++x) extra[x].max = load_teacher(p.teachers[x], tile, n, extra_shifted(x));
    }
  }

  // Exponentials of the ensemble and the extra teachers, relative to the given maxima: a tile's, or the row's.
  template <class Sums>
  void exponentiate_teachers(int64_t tile, int64_t padded, const Sums* maxima, TileSums* sums) {
    teacher_exps<POWER>(mixed, mixed, slot(tile, 0), padded, shift(maxima[0].max), rate(0), sums[0]);
    if (learns) exps_at_1<POWER>(at_1, mixed, slot(tile, 0), padded);
    if constexpr (POWER == APART) {
      if (asides) leave_label_out(tile, 0, slot(tile, 0), sums[0]);
      if (asides && learns && label_column(tile) >= 0) at_1[label_column(tile)] = 0;
    }
    for (int64_t x = 0; x < l.extra; ++x) {
      const int64_t k = p.students + 1 + x;
      float* z = extra_shifted(x);
      teacher_exps<POWER>(z, z, slot(tile, k), padded, shift(maxima[k].max), rate(k), sums[k]);
      if constexpr (POWER == APART) {
        if (asides) leave_label_out(tile, k, slot(tile, k), sums[k]);
      }
    }
  }

  void first_sweep() {
    for (int64_t tile = 0; tile < l.tiles; ++tile) {
      TileSums* sums = tile_sums + tile * l.members;
      load_tile(tile, sums);
      const int64_t padded = round_up(columns(tile), LANES);
      if (asides) set_label_aside(tile, sums);
      if (!asides) look_up(mixed, tile, sums[0].max, row_sums[0]);
      for (int64_t k = 0; k < l.members; ++k) see(sums[k], row_sums[k]);
      exponentiate_teachers(tile, padded, sums, sums);
      if (rest_ == Rest::spread) {
        load_label(tile, columns(tile));
        tile_labels[tile] = sum_of_vectors(label, padded);
        sums[0].labels = label_sum(label, mixed, padded, 0);
      }
      for (int64_t j = 0; j < p.students; ++j) {
        float* z = slot(tile, 1 + j);
        TileSums& own = sums[1 + j];
        if (!asides) look_up(z, tile, own.max, row_sums[1 + j]);
        if (rest_ == Rest::smoothed) row_sums[1 + j].logits += sum_of(z, columns(tile), shift(own.max));
        if (rest_ == Rest::spread) own.labels = label_sum(label, z, padded, shift(own.max));
        if (p.with_weights_grad) {
          const double finite = expectation(z, at_1, padded, own);
          row_sums[1 + j].finite += rest_ == Rest::spread ? finite_label_sum(label, z, padded) : finite;
        }
        if (pairs) {
          teacher_exps<POWER>(z, student_shifted(j), z, padded, shift(own.max), rate(1 + j), own);
          if constexpr (POWER == APART) {
            if (asides) leave_label_out(tile, 1 + j, z, own);
          }
          continue;
        }
        const int64_t target = target_of(j);
        const float* shifted = target ? extra_shifted(target - 1 - p.students) : mixed;
        if (p.divergence == Divergence::reverse) {
          student_exps<POWER, true>(z, shifted, slot(tile, target), padded, shift(own.max), rate(1 + j), scale(1 + j),
                                    scale(target), own);
        } else {
          student_exps<POWER, false>(z, shifted, slot(tile, target), padded, shift(own.max), rate(1 + j), scale(1 + j),
                                     scale(target), own);
        }
        if constexpr (POWER == APART) {
          if (asides) leave_label_out(tile, 1 + j, z, own);
        }
      }
      if (pairs) add_pairs(tile, padded);
    }
  }

  void add_pairs(int64_t tile, int64_t padded) {
    double* cross = tile_pairs + tile * p.students * p.sources();
    for (int64_t j = 0; j < p.students; ++j) {
      for (int64_t i = 0; i < p.sources(); ++i, ++cross) {
        const float* shifted = i < p.students ? student_shifted(i) : extra_shifted(i - p.students);
        const float *target = slot(tile, member_of(i)), *student = slot(tile, 1 + j), *z = student_shifted(j);
        const float target_scale = scale(member_of(i)), own = scale(1 + j);
        if (p.mixing[j * p.sources() + i] == 0) {
          *cross = 0;
        } else if (p.divergence == Divergence::reverse) {
          *cross = cross_sum<POWER>(student, z, shifted, padded, own, target_scale);
        } else {
          *cross = cross_sum<POWER>(target, shifted, z, padded, target_scale, own);
        }
      }
    }
  }

  // Loads the tile again, relative to the row's maxima. The students' slots hold logits.
  void reload_tile(int64_t tile, int64_t padded) {
    TileSums* sums = tile_sums + tile * l.members;
    load_tile(tile, sums);
    exponentiate_teachers(tile, padded, row_sums, sums);
    for (int64_t j = 0; pairs && j < p.students; ++j) {
      float* e = student_shifted(j);
      teacher_exps<POWER>(slot(tile, 1 + j), e, e, padded, row_sums[1 + j].max, rate(1 + j), sums[1 + j]);
      if constexpr (POWER == APART) {
        if (asides) leave_label_out(tile, 1 + j, e, sums[1 + j]);
      }
    }
  }

  // The sums of the Jensen-Shannon divergences, which need the softmaxes of the whole row.
  void js_sweep() {
    for (int64_t tile = 0; tile < l.tiles; ++tile) {
      const int64_t padded = round_up(columns(tile), LANES);
      reload_tile(tile, padded);
      add_js_sums(tile, padded);
    }
  }

  // Finds how the logits of each member are standardised, if they are.
  void start_standards() {
    for (int64_t k = 0; k < l.members; ++k) {
      moments[k] = {};
      standards[k] = {0.0f, 1.0f, 1.0, INFINITY, 0.0};
    }
    if (!p.standardise_logits) return;
    for (int64_t tile = 0; tile < l.tiles; ++tile) {
      TileSums* sums = tile_sums + tile * l.members;
      load_tile(tile, sums);
      const int64_t padded = round_up(columns(tile), LANES);
      for (int64_t k = 0; k < l.members; ++k) {
        moments[k].add(moments_of(logits_of(tile, k), padded, shift(sums[k].max)));
      }
    }
    for (int64_t k = 0; k < l.members; ++k) {
      const double factor = moments[k].inverse_sd();
      standards[k].scale = static_cast<float>(factor == 0 ? CONSTANT_SCALE : factor);
      standards[k].factor = factor;
      standards[k].number = moments[k].number;
    }
  }

  // Completes what the sums of the row are needed for.
  void finish_standards() {
    for (int64_t k = 0; p.standardise_logits && k < l.members; ++k) {
      standards[k].mean = static_cast<float>(moments[k].mean - shift(row_sums[k].max));
    }
    if (asides) add_labels_class();
  }

  // The second sweep if softmaxes at T are apart. The sums of g' z' of a row in several tiles take a sweep of their own.
  void sweep_apart() {
    for (int64_t tile = 0; p.standardise_logits && l.tiles > 1 && tile < l.tiles; ++tile) {
      reload_tile(tile, round_up(columns(tile), LANES));
      for (int64_t j = 0; j < p.students; ++j) standards[1 + j].product += toward_targets(tile, j);
    }
    const double ce = p.target ? ce_scale_ * p.ce_weight : 0.0;
    const double learning = p.target ? ce_scale_ * p.ensemble_ce_weight : 0.0;
    const double even_share = rest_ == Rest::smoothed ? p.label_smoothing / static_cast<double>(p.classes) : 0.0;
    for (int64_t tile = l.tiles - 1; tile >= 0; --tile) {
      const int64_t n = columns(tile), padded = round_up(n, LANES), column = label_column(tile);
      reload_tile(tile, padded);
      if (rest_ == Rest::spread && l.tiles > 1) load_label(tile, n);
      for (int64_t j = 0; j < p.students; ++j) {
        const RowSums& sums = row_sums[1 + j];
        const Standard& standard = standards[1 + j];
        const double product = toward_targets(tile, j), labels = ce + learning * weight(j);
        const double mean = standard.factor == 0 ? 0.0 : (l.tiles > 1 ? standard.product : product) / standard.number;
        const double own = ce * label_total_ / sums.at_1, others = asides ? own * asides[1 + j].others_at_1 : own;
        fill(less, static_cast<float>(labels * even_share), padded);
        add_labels(tile, j, padded, labels, learning, false);
        add_standardised(result, slot(tile, 1 + j), less, padded, shift(sums.max), static_cast<float>(others),
                         static_cast<float>(mean), standard);
        if (column >= 0) {
          if (asides) result[column] += labels_class(j, own, others, learning);
          result[column] -= static_cast<float>(labels * hit_);
        }
        put(address<T>(p.grads[j], tile), n, result, p.stream_stores);
      }
    }
  }

  // What the cross-entropies add to student j's gradient at the label's class, less what sweep_apart has added: `others`
  // times its exponential, cut off at 1.
  float labels_class(int64_t j, double own, double others, double learning) const {
    const double above = static_cast<double>(asides[1 + j].label) - shift(row_sums[1 + j].max);
    const double of_ensemble = learning * weight(j) * label_total_ * asides[0].label_at_1 / row_sums[0].at_1;
    return static_cast<float>(own * asides[1 + j].label_at_1 - others * (above > 0 ? 1.0 : exp(above)) + of_ensemble);
  }

  // Writes the gradient of student j's distillation term for its standardised logits to `result`. Returns the sum of its
  // products with them.
  double toward_targets(int64_t tile, int64_t j) {
    const double kd = kd_scale_ * p.kd_weight * p.temperature;
    const int64_t padded = round_up(columns(tile), LANES), column = label_column(tile);
    Pull factors{p.divergence == Divergence::forward ? weight_of_targets(j) : 0.0, 1.0, 0.0};
    if (asides) factors = pull(j);
    const double at_t = row_sums[1 + j].at_t;
    fill(less, 0, padded);
    add_targets(tile, j, padded, kd * factors.targets, false);
    const float* z = slot(tile, 1 + j);
    const float most = shift(row_sums[1 + j].max);
    const Standard& standard = standards[1 + j];
    double product = toward_target(result, z, less, padded, most, rate(1 + j),
                                   at_t == 0 ? 0.0f : static_cast<float>(kd * factors.own / at_t), standard);
    if (asides && column >= 0) {
      const double label = kd * factors.label, at = (z[column] - most - standard.mean) * standard.scale;
      if (z[column] != -INFINITY) product += (label - result[column]) * at;
      result[column] = static_cast<float>(label);
    }
    return product;
  }

  void second_sweep() {
    const double ce = p.target ? ce_scale_ * p.ce_weight : 0.0;
    const double learning = p.target ? ce_scale_ * p.ensemble_ce_weight : 0.0;
    const double kd = kd_scale_ * p.kd_weight * p.temperature;
    const double even_share = rest_ == Rest::smoothed ? p.label_smoothing / static_cast<double>(p.classes) : 0.0;
    const bool forward = p.divergence == Divergence::forward, kept = l.slots == l.tiles && POWER > 0 && forward;
    for (int64_t tile = l.tiles - 1; tile >= 0; --tile) {
      const int64_t n = columns(tile), padded = round_up(n, LANES), first = tile * l.width;
      if (!kept) {
        reload_tile(tile, padded);
      } else if (learns) {
        exps_at_1<POWER>(at_1, mixed, slot(tile, 0), padded);
      }
      if (rest_ == Rest::spread && l.tiles > 1) load_label(tile, n);
      for (int64_t j = 0; j < p.students; ++j) {
        const RowSums& sums = row_sums[1 + j];
        const double labels = learns ? ce + learning * weight(j) : ce;
        const float even = static_cast<float>(labels * even_share);
        const float hit = static_cast<float>(labels * hit_);
        const double toward = forward ? kd * weight_of_targets(j) : 0.0;
        const float* teacher = less;
        float c = 1;
        if (pairs || learns || rest_ == Rest::spread || !forward) {
          combine(tile, j, padded, kd, labels, learning, kept);
        } else {
          teacher = slot(tile, target_of(j));
          c = static_cast<float>(teacher_factor(tile, target_of(j), kd, kept));
        }
        const float* z = slot(tile, 1 + j);
        float* g = pairs ? result : slot(tile, 1 + j);
        if (kept) {
          const double a = at_1_factor(tile, 1 + j) * (ce * label_total_) / sums.at_1;
          const double b = tile_sums[tile * l.members + 1 + j].factor * toward / sums.at_t;
          gradients<POWER, false>(g, z, teacher, padded, 0, inv_t, static_cast<float>(a), static_cast<float>(b), c,
                                  even);
        } else {
          const double a = ce * label_total_ / sums.at_1, b = toward / sums.at_t;
          gradients<POWER, true>(g, z, teacher, padded, sums.max, inv_t, static_cast<float>(a), static_cast<float>(b),
                                 c, even);
        }
        if (target_ >= first && target_ < first + n) g[target_ - first] -= hit;
        put(address<T>(p.grads[j], tile), n, g, p.stream_stores);
      }
    }
  }

  // Writes zeros as the gradients of an ignored row.
  void clear() {
    float* zeros = exps;
    for (int64_t c = 0; c < l.width; c += LANES) store(zeros + c, vf{});
    for (int64_t tile = 0; tile < l.tiles; ++tile) {
      for (int64_t j = 0; j < p.students; ++j) {
        put(address<T>(p.grads[j], tile), columns(tile), zeros, p.stream_stores);
      }
    }
    if (!p.gate_grads) return;
    for (int64_t j = 0; j < p.students; ++j) p.gate_grads[row_ * p.students + j] = 0;
  }
};

template <class T>
void run_rows(const KDProblem& p, int64_t begin, int64_t end, void* scratch, double* sums, int64_t* correct) {
  switch (power_of(p)) {
    case APART: return Rows<APART, T>(p, scratch).run(begin, end, sums, correct);
    case 1: return Rows<1, T>(p, scratch).run(begin, end, sums, correct);
    case 2: return Rows<2, T>(p, scratch).run(begin, end, sums, correct);
    case 3: return Rows<3, T>(p, scratch).run(begin, end, sums, correct);
    case 4: return Rows<4, T>(p, scratch).run(begin, end, sums, correct);
    default: return Rows<0, T>(p, scratch).run(begin, end, sums, correct);
  }
}

void run_rows_of_dtype(const KDProblem& p, int64_t begin, int64_t end, void* scratch, double* sums, int64_t* correct) {
  switch (p.dtype) {
    case Scalar::bf16: return run_rows<BF16>(p, begin, end, scratch, sums, correct);
    case Scalar::f16: return run_rows<F16>(p, begin, end, scratch, sums, correct);
    default: return run_rows<float>(p, begin, end, scratch, sums, correct);
  }
}

// Elements of all students in one piece of work.
constexpr int64_t PIECE = 8192;

int64_t piece_of(const KDProblem& p) {
  const int64_t piece = PIECE / (p.students * p.classes), least = PackedRows::rows_of_block(p);
  return piece < least ? least : round_up(piece, least);
}

int64_t scratch_bytes(const KDProblem& p) { return layout_of(p).bytes + PackedRows::bytes(p); }

void rows(const KDProblem& p, int64_t begin, int64_t end, void* scratch, double* sums, int64_t* correct) {
  const FlushToZero guard;
  if (PackedRows::rows_of_block(p) == 1) {
    run_rows_of_dtype(p, begin, end, scratch, sums, correct);
  } else {
    PackedRows packed(p, static_cast<char*>(scratch) + layout_of(p).bytes);
    packed.for_each_block(begin, end, [&](const KDProblem& block, int64_t first, int64_t last) {
      run_rows_of_dtype(block, first, last, scratch, sums, correct);
    });
  }
  if (p.stream_stores) finish_streams();
}

}  // namespace

const KDKernel ensemble_kd_kernel{piece_of, scratch_bytes, rows};

}  // namespace oekd::OEKD_ISA
