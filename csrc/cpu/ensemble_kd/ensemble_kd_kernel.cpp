// The kernel of the ensemble distillation loss, compiled once for each instruction set (setup.py).
//
// A row of all S students is cut into tiles of columns that fit the first-level cache together. The first sweep
// reads each logit once, leaves e^((z - m_t)/T) in scratch (m_t: the tile's own maximum) and the tile's sums;
// the tiles' sums are then joined to the row's, and the second sweep, last tile first because that one is still
// cached, turns the exponentials into gradients:
//
//   dL/dz_j = scale * [ ce_weight (p_j - y) + kd_weight T (p_j^T - t) ],    p_j = softmax(z_j),
//   p_j^T = softmax(z_j / T),  t = softmax(zE / T),  zE = sum_j w_j z_j,    y one-hot, or smoothed.
//
// For T = 1..4, e^z is the T-th power of e^(z/T): one exponential an element, plus one a class for the ensemble.
// Rows too long to keep in scratch, and other temperatures, are read and exponentiated again in the second sweep.
//
// Other targets t take the ensemble's place: an external teacher's, or for each student its own mixture of logits
// (members beside the ensemble and the students, with an exponential each); or a sum of the students' own
// probabilities, which needs none. The ensemble's own cross-entropy adds scale * ensemble_ce_weight w_j (pE - y).
#include "cpu/ensemble_kd/ensemble_kd.h"
#include "cpu/ensemble_kd/ensemble_kd_tile.h"

namespace oekd::OEKD_ISA {
namespace {

// Columns of a tile: five students and the ensemble take 28 KB. Narrow lanes get fewer, since a lane's fp32 sum loses
// accuracy with its length.
constexpr int64_t TILE = LANES < 8 ? 512 : 1024;
constexpr int64_t KEEP_BYTES = int64_t{4} << 20;  // exponentials kept between the sweeps, a thread
constexpr int64_t LINE = 64;

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// A row's sums, and what its gradient is made of; `logits` is the sum of z, for label smoothing.
struct RowSums {
  float max, at_target;
  bool correct;
  double at_t, at_1, cross, logits, mass, moment, finite;  // finite: the sum of those z that are
};

struct Layout {
  int64_t width, tiles, slots;  // columns of a tile, padded; tiles of a row; tiles whose exponentials are kept
  int64_t extra, members;       // teachers beside the ensemble; the ensemble, the students and those
  int64_t packed, shifted, at_1, less, result, exps, tile_sums, row_sums, tile_pairs, row_pairs;  // offsets in bytes
  int64_t bytes;
};

Layout layout_of(const KDProblem& p) {
  Layout l;
  const bool pairs = p.targets == Targets::probabilities;
  l.extra = p.targets == Targets::logits ? p.students : p.targets != Targets::ensemble && p.teacher ? 1 : 0;
  l.members = p.students + 1 + l.extra;
  l.width = p.classes < TILE ? round_up(p.classes, LINE / 4) : TILE;
  l.tiles = (p.classes + l.width - 1) / l.width;
  const bool keep = integer_temperature(p.temperature) && l.tiles * l.width * l.members * 4 <= KEEP_BYTES;
  l.slots = p.grads && keep ? l.tiles : 1;
  l.bytes = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t offset = l.bytes;
    l.bytes += round_up(bytes, LINE);
    return offset;
  };
  const int64_t vector = l.width * 4, learns = p.ensemble_ce_weight != 0;
  l.packed = take(vector);
  // The ensemble's and the other teachers'; then the students' where each may be a teacher, or the external one's.
  l.shifted = take((1 + l.extra + (pairs ? p.students : p.targets == Targets::logits && p.teacher)) * vector);
  l.exps = take(l.slots * l.members * vector);
  l.tile_sums = take(l.tiles * l.members * int64_t{sizeof(TileSums)});
  l.row_sums = take(l.members * int64_t{sizeof(RowSums)});
  l.at_1 = take(learns * vector);
  l.less = take((pairs || learns) * vector);
  l.result = take(pairs * vector);
  const int64_t pair_bytes = pairs * p.students * p.sources() * int64_t{sizeof(double)};
  l.tile_pairs = take(l.tiles * pair_bytes);
  l.row_pairs = take(pair_bytes);
  return l;
}

template <int POWER, class T>
class Rows {
 public:
  Rows(const KDProblem& problem, void* scratch)
      : p(problem), l(layout_of(problem)), pairs(p.targets == Targets::probabilities), learns(p.ensemble_ce_weight != 0) {
    char* base = static_cast<char*>(scratch);
    packed = base + l.packed;
    mixed = reinterpret_cast<float*>(base + l.shifted);
    at_1 = reinterpret_cast<float*>(base + l.at_1);
    less = reinterpret_cast<float*>(base + l.less);
    result = reinterpret_cast<float*>(base + l.result);
    exps = reinterpret_cast<float*>(base + l.exps);
    tile_sums = reinterpret_cast<TileSums*>(base + l.tile_sums);
    row_sums = reinterpret_cast<RowSums*>(base + l.row_sums);
    tile_pairs = reinterpret_cast<double*>(base + l.tile_pairs);
    row_pairs = reinterpret_cast<double*>(base + l.row_pairs);
    inv_t = static_cast<float>(1.0 / p.temperature);
  }

  void run(int64_t begin, int64_t end, double* sums, int64_t* correct) {
    for (int64_t row = begin; row < end; ++row) {
      if (p.target && p.target[row] == p.ignore_index) {
        if (p.grads) clear(row);
        continue;
      }
      first_sweep(row);
      join_tiles();
      add_row(sums, correct);
      if (p.moves_weights) move_weights(row, sums + 2 * p.students + 1);
      if (p.grads) second_sweep(row);
    }
  }

 private:
  const KDProblem& p;
  const Layout l;
  const bool pairs, learns;
  void* packed;         // [width] a strided tile, gathered
  float* mixed;         // [1 + extra + ..., width] zE, then zE - max; the other teachers'; see layout_of
  float* at_1;          // [width] e^(zE - max)
  float* less;          // [width] what a student's gradient is less, where that is not one teacher's exponentials
  float* result;        // [width] gradients of a student whose exponentials are still needed
  float* exps;          // [slots, members, width] the ensemble's, the students', the other teachers'
  TileSums* tile_sums;  // [tiles, members]
  RowSums* row_sums;    // [members]
  double* tile_pairs;   // [tiles, S, sources] cross sums of each student with each source of its target
  double* row_pairs;    // [S, sources]
  float inv_t;

  float* slot(int64_t tile, int64_t member) const {
    return exps + ((l.slots > 1 ? tile : 0) * l.members + member) * l.width;
  }
  int64_t columns(int64_t tile) const {
    const int64_t left = p.classes - tile * l.width;
    return left < l.width ? left : l.width;
  }
  float* extra_shifted(int64_t x) const { return mixed + (1 + x) * l.width; }
  float* student_shifted(int64_t j) const { return mixed + (1 + l.extra + j) * l.width; }
  float* external() const { return extra_shifted(p.targets == Targets::logits ? l.extra : 0); }

  // The member whose softmax is student j's target; a sum of several is another matter.
  int64_t target_of(int64_t j) const {
    return p.targets == Targets::ensemble ? 0 : p.targets == Targets::teacher ? p.students + 1 : p.students + 1 + j;
  }
  // The member that a column of the mixing matrix stands for.
  int64_t member_of(int64_t source) const { return 1 + source; }

  template <class U>
  const U* gathered(const Matrix& m, int64_t row, int64_t column, int64_t n) {
    const U* z = static_cast<const U*>(m.data) + row * m.row_stride + column * m.class_stride;
    if (m.class_stride == 1) return z;
    U* tile = static_cast<U*>(packed);
    for (int64_t c = 0; c < n; ++c) tile[c] = z[c * m.class_stride];
    return tile;
  }

  void put_gradients(int64_t j, int64_t row, int64_t column, int64_t n, const float* g) {
    const Matrix& m = p.grads[j];
    T* dst = static_cast<T*>(m.data) + row * m.row_stride + column * m.class_stride;
    if (m.class_stride == 1) return put(dst, n, g, p.stream_stores);
    T* tile = static_cast<T*>(packed);
    put(tile, n, g, false);
    for (int64_t c = 0; c < n; ++c) dst[c * m.class_stride] = tile[c];
  }

  // Logits of one tile into its slot, and zE into `mixed`.
  void load_tile(int64_t tile, TileSums* sums) {
    const int64_t n = columns(tile), padded = round_up(n, LANES);
    fill(mixed, 0, padded);
    for (int64_t j = 0; j < p.students; ++j) {
      const T* z = gathered<T>(p.logits[j], row_, tile * l.width, n);
      const float w = weights_ ? weights_[j] : 1.0f;
      float* dst = slot(tile, 1 + j);
      // A student of weight 0 has no say, even where its logit is -inf.
      sums[1 + j].max = w == 0 ? take_logits<false>(z, n, w, dst, mixed) : take_logits<true>(z, n, w, dst, mixed);
    }
    for (int64_t c = n; c < padded; ++c) mixed[c] = -INFINITY;
    // The plain mean is a sum and one division, as in PyTorch: equal sums stay equal, and it is rounded once.
    sums[0].max = divide_and_max(mixed, padded, weights_ ? 1.0f : static_cast<float>(p.students));
    if (p.targets != Targets::ensemble) load_teachers(tile, n, padded, sums + 1 + p.students);
  }

  // What the teachers beside the ensemble are made of; `sums` are theirs.
  void load_teachers(int64_t tile, int64_t n, int64_t padded, TileSums* sums) {
    float external_max = -INFINITY;
    if (p.teacher) {
      switch (p.teacher_dtype) {
        case Scalar::f32: external_max = load_external<float>(tile, n); break;
        case Scalar::bf16: external_max = load_external<BF16>(tile, n); break;
        case Scalar::f16: external_max = load_external<F16>(tile, n); break;
      }
    }
    if (p.targets != Targets::logits) {
      if (l.extra) sums[0].max = external_max;
      return;
    }
    for (int64_t j = 0; j < p.students; ++j) {
      float* target = extra_shifted(j);
      fill(target, 0, padded);
      for (int64_t i = 0; i < p.sources(); ++i) {
        const float w = p.mixing[j * p.sources() + i];
        if (w != 0) add_scaled(target, i < p.students ? slot(tile, 1 + i) : external(), w, padded);
      }
      for (int64_t c = n; c < padded; ++c) target[c] = -INFINITY;
      sums[j].max = divide_and_max(target, padded, 1.0f);
    }
  }

  template <class U>
  float load_external(int64_t tile, int64_t n) {
    return take_logits<false>(gathered<U>(*p.teacher, row_, tile * l.width, n), n, 0, external(), external());
  }

  // Exponentials of the ensemble and the other teachers, relative to the maxima given: a tile's, or the row's.
  template <class Sums>
  void exponentiate_teachers(int64_t tile, int64_t padded, const Sums* maxima, TileSums* sums) {
    teacher_exps<POWER>(mixed, mixed, slot(tile, 0), padded, shift(maxima[0].max), inv_t, sums[0]);
    if (learns) exps_at_1<POWER>(at_1, mixed, slot(tile, 0), padded);
    for (int64_t x = 0; x < l.extra; ++x) {
      const int64_t k = p.students + 1 + x;
      float* z = extra_shifted(x);
      teacher_exps<POWER>(z, z, slot(tile, k), padded, shift(maxima[k].max), inv_t, sums[k]);
    }
  }

  // Notes the target's logit, and whether it is the first largest so far; z is the tile before it is overwritten.
  void look_up(const float* z, int64_t tile, float tile_max, RowSums& row) const {
    const bool larger = tile_max > row.max;
    if (larger) row.correct = false;
    const int64_t column = target_ - tile * l.width;
    if (column >= 0 && column < columns(tile)) {
      row.at_target = z[column];
      row.correct = larger && z[column] == tile_max && !contains(z, column, tile_max);
    }
    if (larger) row.max = tile_max;
  }

  void first_sweep(int64_t row) {
    row_ = row;
    target_ = p.target ? p.target[row] : -1;
    weights_ = p.ensemble_weights ? p.ensemble_weights + row * p.weights_row : nullptr;
    for (int64_t k = 0; k < l.members; ++k) {
      row_sums[k] = {};
      row_sums[k].max = -INFINITY;
    }
    for (int64_t tile = 0; tile < l.tiles; ++tile) {
      TileSums* sums = tile_sums + tile * l.members;
      load_tile(tile, sums);
      const int64_t padded = round_up(columns(tile), LANES);
      look_up(mixed, tile, sums[0].max, row_sums[0]);
      for (int64_t k = p.students + 1; k < l.members; ++k) {
        if (sums[k].max > row_sums[k].max) row_sums[k].max = sums[k].max;
      }
      exponentiate_teachers(tile, padded, sums, sums);
      for (int64_t j = 0; j < p.students; ++j) {
        float* z = slot(tile, 1 + j);
        TileSums& own = sums[1 + j];
        look_up(z, tile, own.max, row_sums[1 + j]);
        if (p.label_smoothing > 0) row_sums[1 + j].logits += sum_of(z, columns(tile));
        if (p.moves_weights) row_sums[1 + j].finite += expectation(z, at_1, padded, shift(own.max), own);
        if (pairs) {
          teacher_exps<POWER>(z, student_shifted(j), z, padded, shift(own.max), inv_t, own);
          continue;
        }
        const int64_t target = target_of(j);
        const float* shifted = target ? extra_shifted(target - 1 - p.students) : mixed;
        student_exps<POWER>(z, shifted, slot(tile, target), padded, shift(own.max), inv_t, own);
      }
      if (pairs) add_pairs(tile, padded);
    }
  }

  void add_pairs(int64_t tile, int64_t padded) {
    double* cross = tile_pairs + tile * p.students * p.sources();
    for (int64_t j = 0; j < p.students; ++j) {
      for (int64_t i = 0; i < p.sources(); ++i, ++cross) {
        const float* shifted = i < p.students ? student_shifted(i) : external();
        const bool given = p.mixing[j * p.sources() + i] != 0;
        *cross = given ? cross_sum(slot(tile, member_of(i)), shifted, student_shifted(j), padded) : 0.0;
      }
    }
  }

  // A tile of -inf alone: shifting by its maximum would give NaN.
  static float shift(float max) { return max == -INFINITY ? 0.0f : max; }

  double at_t_factor(int64_t tile, int64_t k) const {
    const float m = tile_sums[tile * l.members + k].max;
    if (l.tiles == 1) return 1.0;
    return m == -INFINITY ? 0.0 : exp((static_cast<double>(m) - row_sums[k].max) / p.temperature);
  }
  double at_1_factor(int64_t tile, int64_t k) const {
    const float m = tile_sums[tile * l.members + k].max;
    if (l.tiles == 1) return 1.0;
    return m == -INFINITY ? 0.0 : exp(static_cast<double>(m) - row_sums[k].max);
  }

  // What a member's maximum in a tile is above the row's.
  double above(int64_t tile, int64_t k) const {
    return static_cast<double>(tile_sums[tile * l.members + k].max) - row_sums[k].max;
  }

  // A tile's cross sum of teacher k and student j, relative to the row's maxima.
  double joined(int64_t tile, int64_t k, int64_t j, double cross) const {
    const TileSums& teacher = tile_sums[tile * l.members + k];
    if (teacher.factor == 0) return 0.0;
    const double moved = l.tiles == 1 ? 0.0 : above(tile, k) - above(tile, 1 + j);
    return teacher.factor * (cross + teacher.at_t * moved);
  }

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
      for (int64_t j = 0; j < p.students; ++j) {
        if (p.moves_weights) join_expectation(tile, sums[1 + j], row_sums[1 + j], above(tile, 1 + j));
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

  void join_expectation(int64_t tile, const TileSums& sums, RowSums& row, double moved) const {
    if (sums.mass == 0) return;  // the student's tile may be -inf alone
    const double factor = at_1_factor(tile, 0);
    row.mass += factor * sums.mass;
    row.moment += factor * (sums.moment + sums.mass * moved);
  }

  double cross_entropy(const RowSums& row, bool smoothed) const {
    const double log_sum = log(row.at_1);
    const double plain = log_sum + (static_cast<double>(row.max) - row.at_target);
    if (!smoothed) return plain;
    const double even = log_sum + row.max - row.logits / static_cast<double>(p.classes);
    return (1 - p.label_smoothing) * plain + p.label_smoothing * even;
  }

  // KL(teacher || student) at T; rounding can give -1e-9.
  double divergence(double cross, const RowSums& teacher, const RowSums& student) const {
    const double kl = cross / (p.temperature * teacher.at_t) + log(student.at_t / teacher.at_t);
    return kl < 0 ? 0 : kl;
  }

  double distance_to_target(int64_t j) const {
    const RowSums& student = row_sums[1 + j];
    if (!pairs) return divergence(student.cross, row_sums[target_of(j)], student);
    double sum = 0;
    for (int64_t at = j * p.sources(), i = 0; i < p.sources(); ++i, ++at) {
      if (p.mixing[at] != 0) sum += p.mixing[at] * divergence(row_pairs[at], row_sums[member_of(i)], student);
    }
    return sum;
  }

  void add_row(double* sums, int64_t* correct) const {
    for (int64_t j = 0; j < p.students; ++j) {
      const RowSums& row = row_sums[1 + j];
      sums[p.students + j] += p.temperature * p.temperature * distance_to_target(j);
      if (!p.target) continue;
      sums[j] += cross_entropy(row, p.label_smoothing > 0);
      correct[j] += row.correct;
    }
    if (!p.target) return;
    sums[2 * p.students] += ensemble_cross_entropy();
    correct[p.students] += row_sums[0].correct;
  }

  // dL/dw_j = scale * ensemble_ce_weight * (sum_c pE z_j - sum_c y z_j); a logit of -inf counts 0 in it.
  void move_weights(int64_t row, double* sums) const {
    for (int64_t j = 0; j < p.students; ++j) {
      const RowSums& z = row_sums[1 + j];
      const double expected = z.mass == 0 ? 0.0 : (z.moment + z.mass * z.max) / row_sums[0].at_1;
      const double at_target = z.at_target == -INFINITY ? 0.0 : z.at_target;
      const double even = z.finite / static_cast<double>(p.classes);
      const double labels = (1 - p.label_smoothing) * at_target + p.label_smoothing * even;
      const double grad = p.grad_scale * p.ensemble_ce_weight * (expected - labels);
      sums[j] += grad;
      if (p.gate_grads) p.gate_grads[row * p.students + j] = static_cast<float>(grad);
    }
  }

  double ensemble_cross_entropy() const {
    if (!(p.label_smoothing > 0)) return cross_entropy(row_sums[0], false);
    RowSums ensemble = row_sums[0];
    for (int64_t j = 0; j < p.students; ++j) {
      const double w = weight(j);
      if (w != 0) ensemble.logits += w * row_sums[1 + j].logits;
    }
    return cross_entropy(ensemble, true);
  }

  double weight(int64_t j) const { return weights_ ? weights_[j] : 1.0 / static_cast<double>(p.students); }

  // What student j's divergences weigh together.
  double weight_of_targets(int64_t j) const {
    if (!pairs) return 1.0;
    double sum = 0;
    for (int64_t i = 0; i < p.sources(); ++i) sum += p.mixing[j * p.sources() + i];
    return sum;
  }

  // Of a teacher's exponentials in a tile, kept or of the row's maximum: what makes `kd` times its softmax of them.
  double teacher_factor(int64_t tile, int64_t k, double kd, bool kept) const {
    return (kept ? tile_sums[tile * l.members + k].factor : 1.0) * kd / row_sums[k].at_t;
  }

  // What student j's gradient is less in a tile: a sum over teachers, less the ensemble's own part.
  void combine(int64_t tile, int64_t j, int64_t padded, double kd, double learning, bool kept) {
    fill(less, 0, padded);
    if (!pairs) {
      const int64_t k = target_of(j);
      add_scaled(less, slot(tile, k), static_cast<float>(teacher_factor(tile, k, kd, kept)), padded);
    } else {
      for (int64_t i = 0; i < p.sources(); ++i) {
        const float w = p.mixing[j * p.sources() + i];
        const float* e = kept || i == p.students ? slot(tile, member_of(i)) : student_shifted(i);
        const double factor = w * teacher_factor(tile, member_of(i), kd, kept);
        if (w != 0) add_scaled(less, e, static_cast<float>(factor), padded);
      }
    }
    if (!learns) return;
    const double own = learning * weight(j) * (kept ? at_1_factor(tile, 0) : 1.0) / row_sums[0].at_1;
    add_scaled(less, at_1, static_cast<float>(-own), padded);
  }

  // The tile again, relative to the row's maxima; the students' logits stay as they are.
  void reload_tile(int64_t tile, int64_t padded) {
    TileSums* sums = tile_sums + tile * l.members;
    load_tile(tile, sums);
    exponentiate_teachers(tile, padded, row_sums, sums);
    for (int64_t j = 0; pairs && j < p.students; ++j) {
      float* e = student_shifted(j);
      teacher_exps<POWER>(slot(tile, 1 + j), e, e, padded, row_sums[1 + j].max, inv_t, sums[1 + j]);
    }
  }

  void second_sweep(int64_t row) {
    const double ce = p.target ? p.grad_scale * p.ce_weight : 0.0;
    const double learning = p.target ? p.grad_scale * p.ensemble_ce_weight : 0.0;
    const double kd = p.grad_scale * p.kd_weight * p.temperature;
    const bool kept = l.slots == l.tiles && POWER != 0;
    for (int64_t tile = l.tiles - 1; tile >= 0; --tile) {
      const int64_t n = columns(tile), padded = round_up(n, LANES), first = tile * l.width;
      if (!kept) {
        reload_tile(tile, padded);
      } else if (learns) {
        exps_at_1<POWER>(at_1, mixed, slot(tile, 0), padded);
      }
      for (int64_t j = 0; j < p.students; ++j) {
        const RowSums& sums = row_sums[1 + j];
        const double labels = learns ? ce + learning * weight(j) : ce;
        const float even = static_cast<float>(labels * p.label_smoothing / static_cast<double>(p.classes));
        const float hit = static_cast<float>(labels * (1 - p.label_smoothing));
        const double toward = kd * weight_of_targets(j);
        const float* teacher = less;
        float c = 1;
        if (pairs || learns) {
          combine(tile, j, padded, kd, learning, kept);
        } else {
          teacher = slot(tile, target_of(j));
          c = static_cast<float>(teacher_factor(tile, target_of(j), kd, kept));
        }
        const float* z = slot(tile, 1 + j);
        float* g = pairs ? result : slot(tile, 1 + j);
        if (kept) {
          const double a = at_1_factor(tile, 1 + j) * ce / sums.at_1;
          const double b = tile_sums[tile * l.members + 1 + j].factor * toward / sums.at_t;
          gradients<POWER, false>(g, z, teacher, padded, 0, inv_t, static_cast<float>(a), static_cast<float>(b), c,
                                  even);
        } else {
          const double a = ce / sums.at_1, b = toward / sums.at_t;
          gradients<POWER, true>(g, z, teacher, padded, sums.max, inv_t, static_cast<float>(a), static_cast<float>(b),
                                 c, even);
        }
        if (target_ >= first && target_ < first + n) g[target_ - first] -= hit;
        put_gradients(j, row, first, n, g);
      }
    }
  }

  void clear(int64_t row) {
    float* zeros = exps;
    for (int64_t c = 0; c < l.width; c += LANES) store(zeros + c, vf{});
    for (int64_t tile = 0; tile < l.tiles; ++tile) {
      for (int64_t j = 0; j < p.students; ++j) put_gradients(j, row, tile * l.width, columns(tile), zeros);
    }
    if (!p.gate_grads) return;
    for (int64_t j = 0; j < p.students; ++j) p.gate_grads[row * p.students + j] = 0;
  }

  int64_t row_ = 0, target_ = -1;
  const float* weights_ = nullptr;  // [S], the row's
};

template <class T>
void run_rows(const KDProblem& p, int64_t begin, int64_t end, void* scratch, double* sums, int64_t* correct) {
  switch (integer_temperature(p.temperature)) {
    case 1: return Rows<1, T>(p, scratch).run(begin, end, sums, correct);
    case 2: return Rows<2, T>(p, scratch).run(begin, end, sums, correct);
    case 3: return Rows<3, T>(p, scratch).run(begin, end, sums, correct);
    case 4: return Rows<4, T>(p, scratch).run(begin, end, sums, correct);
    default: return Rows<0, T>(p, scratch).run(begin, end, sums, correct);
  }
}

}  // namespace

int64_t ensemble_kd_scratch_bytes(const KDProblem& problem) { return layout_of(problem).bytes; }

void ensemble_kd_rows(const KDProblem& p, int64_t begin, int64_t end, void* scratch, double* sums, int64_t* correct) {
  const FlushToZero guard;
  switch (p.dtype) {
    case Scalar::f32: run_rows<float>(p, begin, end, scratch, sums, correct); break;
    case Scalar::bf16: run_rows<BF16>(p, begin, end, scratch, sums, correct); break;
    case Scalar::f16: run_rows<F16>(p, begin, end, scratch, sums, correct); break;
  }
  if (p.stream_stores) finish_streams();
}

}  // namespace oekd::OEKD_ISA
