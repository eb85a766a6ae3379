// The kernel of the ensemble distillation loss, compiled once an instruction set.
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
#include "ensemble_kd.h"
#include "vec.h"

#include <math.h>

namespace oekd::OEKD_ISA {
namespace {

// Columns of a tile: five students and the ensemble take 28 KB. Narrow lanes get fewer, since a lane's fp32 sum loses
// accuracy with its length.
constexpr int64_t TILE = LANES < 8 ? 512 : 1024;
constexpr int64_t KEEP_BYTES = int64_t{4} << 20;  // exponentials kept between the sweeps, a thread
constexpr int64_t LINE = 64;

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// e^z from e^(z/T); 0 stands for a temperature that needs an exponential of its own.
inline int integer_temperature(double t) { return t == 1 ? 1 : t == 2 ? 2 : t == 3 ? 3 : t == 4 ? 4 : 0; }

template <int POWER>
inline vf power(vf e) {
  if constexpr (POWER == 1) return e;
  if constexpr (POWER == 2) return e * e;
  if constexpr (POWER == 3) return e * e * e;
  if constexpr (POWER == 4) return (e * e) * (e * e);
}

// A tile's sums for the ensemble (index 0) or a student (index 1 + j), relative to the tile's maximum.
struct TileSums {
  float max;
  double at_t;     // sum e^((z - max)/T)
  double at_1;     // sum e^(z - max)
  double cross;    // students: sum e^((zE - maxE)/T) ((zE - maxE) - (z - max))
};

// A row's sums, and what its gradient is made of; `logits` is the sum of z, for label smoothing.
struct RowSums {
  float max, at_target;
  bool correct;
  double at_t, at_1, cross, logits;
};

struct Layout {
  int64_t width, tiles, slots;  // columns of a tile, padded; tiles of a row; tiles whose exponentials are kept
  int64_t packed, mixed, exps, tile_sums, row_sums, bytes;  // offsets in bytes
};

Layout layout_of(const KDProblem& p) {
  Layout l;
  const int64_t members = p.students + 1;
  l.width = p.classes < TILE ? round_up(p.classes, LINE / 4) : TILE;
  l.tiles = (p.classes + l.width - 1) / l.width;
  const bool keep = integer_temperature(p.temperature) && l.tiles * l.width * members * 4 <= KEEP_BYTES;
  l.slots = p.grads && keep ? l.tiles : 1;
  l.packed = 0;
  l.mixed = l.packed + l.width * 4;
  l.exps = l.mixed + l.width * 4;
  l.tile_sums = l.exps + l.slots * members * l.width * 4;
  l.row_sums = l.tile_sums + round_up(l.tiles * members * int64_t{sizeof(TileSums)}, LINE);
  l.bytes = l.row_sums + round_up(members * int64_t{sizeof(RowSums)}, LINE);
  return l;
}

inline vf first_lanes(int64_t n, vf v, float other) {
  vi lane;
  for (int i = 0; i < LANES; ++i) lane[i] = i;
  return lane < (vi{} + static_cast<int32_t>(n)) ? v : splat(other);
}

template <class T>
inline vf load_part(const T* p, int64_t n, float other) {
  T part[LANES] = {};
  __builtin_memcpy(part, p, n * sizeof(T));
  return first_lanes(n, load_float(part), other);
}

// dst = z, padded with -inf; mixed += w z; returns the maximum.
template <bool MIX, class T>
float take_logits(const T* z, int64_t n, float w, float* dst, float* mixed) {
  vf m = splat(-INFINITY);
  const auto step = [&](int64_t c, vf v) {
    store(dst + c, v);
    if constexpr (MIX) store(mixed + c, v * w + load<vf>(mixed + c));
    m = max(v, m);
  };
  int64_t c = 0;
  for (; c + LANES <= n; c += LANES) step(c, load_float(z + c));
  if (c < n) step(c, load_part(z + c, n - c, -INFINITY));
  return max_across(m);
}

// z /= divisor; returns the maximum.
float divide_and_max(float* z, int64_t width, float divisor) {
  vf m = splat(-INFINITY);
  for (int64_t c = 0; c < width; c += LANES) {
    const vf v = load<vf>(z + c) / divisor;
    store(z + c, v);
    m = max(v, m);
  }
  return max_across(m);
}

bool contains(const float* z, int64_t n, float value) {
  int64_t c = 0;
  for (; c + LANES <= n; c += LANES) {
    const vi equal = load<vf>(z + c) == splat(value);
    int32_t any = 0;
    for (int i = 0; i < LANES; ++i) any |= equal[i];
    if (any) return true;
  }
  for (; c < n; ++c) {
    if (z[c] == value) return true;
  }
  return false;
}

double sum_of(const float* z, int64_t n) {
  vf s{};
  int64_t c = 0;
  for (; c + LANES <= n; c += LANES) s += load<vf>(z + c);
  double total = sum_across(s);
  for (; c < n; ++c) total += z[c];
  return total;
}

// The ensemble's tile: mixed becomes zE - max, exps e^((zE - max)/T).
template <int POWER>
void ensemble_exps(float* mixed, float* exps, int64_t width, float shift, float inv_t, TileSums& sums) {
  vf at_t{}, at_1{};
  for (int64_t c = 0; c < width; c += LANES) {
    const vf d = load<vf>(mixed + c) - shift;
    const vf e = exp_nonpositive(d * inv_t);
    store(mixed + c, d);
    store(exps + c, e);
    at_t += e;
    if constexpr (POWER == 0) {
      at_1 += exp_nonpositive(d);
    } else {
      at_1 += power<POWER>(e);
    }
  }
  sums.at_t = sum_across(at_t);
  sums.at_1 = sum_across(at_1);
}

// A student's tile: z becomes e^((z - max)/T).
template <int POWER>
void student_exps(float* z, const float* mixed, const float* teacher, int64_t width, float shift, float inv_t,
                  TileSums& sums) {
  vf at_t{}, at_1{}, cross{};
  for (int64_t c = 0; c < width; c += LANES) {
    const vf d = load<vf>(z + c) - shift;
    const vf e = exp_nonpositive(d * inv_t);
    store(z + c, e);
    at_t += e;
    if constexpr (POWER == 0) {
      at_1 += exp_nonpositive(d);
    } else {
      at_1 += power<POWER>(e);
    }
    const vf t = load<vf>(teacher + c);
    const vf gap = load<vf>(mixed + c) - d;
    cross += t * (t == vf{} ? vf{} : gap);  // 0 * (-inf - -inf) counts 0
  }
  sums.at_t = sum_across(at_t);
  sums.at_1 = sum_across(at_1);
  sums.cross = sum_across(cross);
}

// g = a e^z + b e^(z/T) - c t - k, from exponentials or, RECOMPUTE, from logits.
template <int POWER, bool RECOMPUTE>
void gradients(float* g, const float* teacher, int64_t width, float shift, float inv_t, float a, float b, float c,
               float k) {
  for (int64_t i = 0; i < width; i += LANES) {
    vf e = load<vf>(g + i), e1;
    if constexpr (RECOMPUTE) {
      const vf d = e - shift;
      e = exp_nonpositive(d * inv_t);
      if constexpr (POWER == 0) e1 = exp_nonpositive(d);
    }
    if constexpr (POWER != 0) e1 = power<POWER>(e);
    store(g + i, e1 * a + (e * b - (load<vf>(teacher + i) * c + k)));
  }
}

template <class T>
void put(T* dst, int64_t n, const float* src, bool streamed) {
  int64_t c = 0;
  if constexpr (sizeof(T) == 4) {
    if (streamed) {
      for (; c < n && reinterpret_cast<uintptr_t>(dst + c) % sizeof(vf); ++c) dst[c] = src[c];
      for (; c + LANES <= n; c += LANES) stream(dst + c, load<vf>(src + c));
    }
  }
  for (; c + LANES <= n; c += LANES) store_float(dst + c, load<vf>(src + c));
  if (c < n) {
    float part_in[LANES] = {};
    T part_out[LANES];
    __builtin_memcpy(part_in, src + c, (n - c) * sizeof(float));
    store_float(part_out, load<vf>(part_in));
    __builtin_memcpy(dst + c, part_out, (n - c) * sizeof(T));
  }
}

template <int POWER, class T>
class Rows {
 public:
  Rows(const KDProblem& problem, void* scratch) : p(problem), l(layout_of(problem)), members(problem.students + 1) {
    char* base = static_cast<char*>(scratch);
    packed = reinterpret_cast<T*>(base + l.packed);
    mixed = reinterpret_cast<float*>(base + l.mixed);
    exps = reinterpret_cast<float*>(base + l.exps);
    tile_sums = reinterpret_cast<TileSums*>(base + l.tile_sums);
    row_sums = reinterpret_cast<RowSums*>(base + l.row_sums);
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
      if (p.grads) second_sweep(row);
    }
  }

 private:
  const KDProblem& p;
  const Layout l;
  const int64_t members;
  T* packed;            // [width] a strided tile, gathered
  float* mixed;         // [width] zE, then zE - max
  float* exps;          // [slots, S + 1, width] the ensemble's, then the students'
  TileSums* tile_sums;  // [tiles, S + 1]
  RowSums* row_sums;    // [S + 1]
  float inv_t;

  float* slot(int64_t tile, int64_t member) const {
    return exps + ((l.slots > 1 ? tile : 0) * members + member) * l.width;
  }
  int64_t columns(int64_t tile) const {
    const int64_t left = p.classes - tile * l.width;
    return left < l.width ? left : l.width;
  }

  const T* logits(int64_t j, int64_t row, int64_t column, int64_t n) {
    const Matrix& m = p.logits[j];
    const T* z = static_cast<const T*>(m.data) + row * m.row_stride + column * m.class_stride;
    if (m.class_stride == 1) return z;
    for (int64_t c = 0; c < n; ++c) packed[c] = z[c * m.class_stride];
    return packed;
  }

  void put_gradients(int64_t j, int64_t row, int64_t column, int64_t n, const float* g) {
    const Matrix& m = p.grads[j];
    T* dst = static_cast<T*>(m.data) + row * m.row_stride + column * m.class_stride;
    if (m.class_stride == 1) return put(dst, n, g, p.stream_stores);
    put(packed, n, g, false);
    for (int64_t c = 0; c < n; ++c) dst[c * m.class_stride] = packed[c];
  }

  // Logits of one tile into its slot, and zE into `mixed`.
  void load_tile(int64_t tile, TileSums* sums) {
    const int64_t n = columns(tile), padded = round_up(n, LANES);
    for (int64_t c = 0; c < padded; c += LANES) store(mixed + c, vf{});
    for (int64_t j = 0; j < p.students; ++j) {
      const T* z = logits(j, row_, tile * l.width, n);
      const float w = p.ensemble_weights ? p.ensemble_weights[j] : 1.0f;
      float* dst = slot(tile, 1 + j);
      // A student of weight 0 has no say, even where its logit is -inf.
      sums[1 + j].max = w == 0 ? take_logits<false>(z, n, w, dst, mixed) : take_logits<true>(z, n, w, dst, mixed);
    }
    for (int64_t c = n; c < padded; ++c) mixed[c] = -INFINITY;
    // The plain mean is a sum and one division, as in PyTorch: equal sums stay equal, and it is rounded once.
    sums[0].max = divide_and_max(mixed, padded, p.ensemble_weights ? 1.0f : static_cast<float>(p.students));
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
    for (int64_t k = 0; k < members; ++k) row_sums[k] = {-INFINITY, 0.0f, false, 0, 0, 0, 0};
    for (int64_t tile = 0; tile < l.tiles; ++tile) {
      TileSums* sums = tile_sums + tile * members;
      load_tile(tile, sums);
      const int64_t padded = round_up(columns(tile), LANES);
      look_up(mixed, tile, sums[0].max, row_sums[0]);
      float* teacher = slot(tile, 0);
      ensemble_exps<POWER>(mixed, teacher, padded, shift(sums[0].max), inv_t, sums[0]);
      for (int64_t j = 1; j < members; ++j) {
        float* z = slot(tile, j);
        look_up(z, tile, sums[j].max, row_sums[j]);
        if (p.label_smoothing > 0) row_sums[j].logits += sum_of(z, columns(tile));
        student_exps<POWER>(z, mixed, teacher, padded, shift(sums[j].max), inv_t, sums[j]);
      }
    }
  }

  // A tile of -inf alone: shifting by its maximum would give NaN.
  static float shift(float max) { return max == -INFINITY ? 0.0f : max; }

  double at_t_factor(int64_t tile, int64_t k) const {
    const float m = tile_sums[tile * members + k].max;
    if (l.tiles == 1) return 1.0;
    return m == -INFINITY ? 0.0 : exp((static_cast<double>(m) - row_sums[k].max) / p.temperature);
  }
  double at_1_factor(int64_t tile, int64_t k) const {
    const float m = tile_sums[tile * members + k].max;
    if (l.tiles == 1) return 1.0;
    return m == -INFINITY ? 0.0 : exp(static_cast<double>(m) - row_sums[k].max);
  }

  void join_tiles() {
    for (int64_t tile = 0; tile < l.tiles; ++tile) {
      const TileSums* sums = tile_sums + tile * members;
      const double teacher = at_t_factor(tile, 0);
      const double teacher_shift = static_cast<double>(sums[0].max) - row_sums[0].max;
      for (int64_t k = 0; k < members; ++k) {
        row_sums[k].at_t += k == 0 ? teacher * sums[0].at_t : at_t_factor(tile, k) * sums[k].at_t;
        row_sums[k].at_1 += at_1_factor(tile, k) * sums[k].at_1;
        if (k == 0 || teacher == 0) continue;
        const double moved = l.tiles == 1 ? 0.0 : teacher_shift - (static_cast<double>(sums[k].max) - row_sums[k].max);
        row_sums[k].cross += teacher * (sums[k].cross + sums[0].at_t * moved);
      }
    }
  }

  double cross_entropy(const RowSums& row, bool smoothed) const {
    const double log_sum = log(row.at_1);
    const double plain = log_sum + (static_cast<double>(row.max) - row.at_target);
    if (!smoothed) return plain;
    const double even = log_sum + row.max - row.logits / static_cast<double>(p.classes);
    return (1 - p.label_smoothing) * plain + p.label_smoothing * even;
  }

  void add_row(double* sums, int64_t* correct) const {
    const RowSums& ensemble = row_sums[0];
    for (int64_t j = 0; j < p.students; ++j) {
      const RowSums& row = row_sums[1 + j];
      const double kl = row.cross / (p.temperature * ensemble.at_t) + log(row.at_t / ensemble.at_t);
      sums[p.students + j] += p.temperature * p.temperature * (kl < 0 ? 0 : kl);  // rounding can give -1e-9
      if (!p.target) continue;
      sums[j] += cross_entropy(row, p.label_smoothing > 0);
      correct[j] += row.correct;
    }
    if (!p.target) return;
    sums[2 * p.students] += ensemble_cross_entropy();
    correct[p.students] += ensemble.correct;
  }

  double ensemble_cross_entropy() const {
    if (!(p.label_smoothing > 0)) return cross_entropy(row_sums[0], false);
    RowSums ensemble = row_sums[0];
    for (int64_t j = 0; j < p.students; ++j) {
      const double w = p.ensemble_weights ? p.ensemble_weights[j] : 1.0 / static_cast<double>(p.students);
      if (w != 0) ensemble.logits += w * row_sums[1 + j].logits;
    }
    return cross_entropy(ensemble, true);
  }

  void second_sweep(int64_t row) {
    const double ce = p.target ? p.grad_scale * p.ce_weight : 0.0;
    const double kd = p.grad_scale * p.kd_weight * p.temperature;
    const bool kept = l.slots == l.tiles && POWER != 0;
    const float even = static_cast<float>(ce * p.label_smoothing / static_cast<double>(p.classes));
    const float hit = static_cast<float>(ce * (1 - p.label_smoothing));
    for (int64_t tile = l.tiles - 1; tile >= 0; --tile) {
      const int64_t n = columns(tile), padded = round_up(n, LANES), first = tile * l.width;
      float* teacher = slot(tile, 0);
      if (!kept) {
        TileSums* sums = tile_sums + tile * members;
        load_tile(tile, sums);
        ensemble_exps<POWER>(mixed, teacher, padded, row_sums[0].max, inv_t, sums[0]);
      }
      const float c = static_cast<float>((kept ? at_t_factor(tile, 0) : 1.0) * kd / row_sums[0].at_t);
      for (int64_t j = 0; j < p.students; ++j) {
        const RowSums& sums = row_sums[1 + j];
        float* g = slot(tile, 1 + j);
        if (kept) {
          const double a = at_1_factor(tile, 1 + j) * ce / sums.at_1, b = at_t_factor(tile, 1 + j) * kd / sums.at_t;
          gradients<POWER, false>(g, teacher, padded, 0, inv_t, static_cast<float>(a), static_cast<float>(b), c, even);
        } else {
          const double a = ce / sums.at_1, b = kd / sums.at_t;
          gradients<POWER, true>(g, teacher, padded, sums.max, inv_t, static_cast<float>(a), static_cast<float>(b), c,
                                 even);
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
  }

  int64_t row_ = 0, target_ = -1;
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
