// Scratch memory of the ensemble distillation kernel: what a thread keeps of one row between its two sweeps.
//
// The members of a row are, in this order, the ensemble (0), the students (1 .. S), and the extra teachers: the
// external teachers, or for mixed logits each student's mixture.
#pragma once

#include "cpu/ensemble_kd/ensemble_kd_elements.h"
#include "cpu/ensemble_kd/ensemble_kd_decoupled.h"
#include "cpu/ensemble_kd/ensemble_kd_divergences.h"
#include "cpu/ensemble_kd/ensemble_kd_standardised.h"
#include "cpu/ensemble_kd/ensemble_kd_tile.h"

namespace oekd::OEKD_ISA {
namespace {

// Columns of a tile: the tiles of five students and the ensemble take 28 KB. Narrow vectors get shorter tiles, since
// the fp32 sum of one lane loses accuracy with its length.
constexpr int64_t TILE = LANES < 8 ? 512 : 1024;
constexpr int64_t KEEP_BYTES = int64_t{4} << 20;  // most bytes of exponentials that a thread keeps between the sweeps

// The sums of one member over a row. Exponentials are relative to `max`, but with the decoupled divergence those at 1 to
// `largest` in the end.
struct RowSums {
  float max, at_target;  // the largest logit, and the target's; `max` leaves the label's out if it is decoupled
  float largest;         // the largest logit
  bool correct;          // the target is the first largest
  double at_t, at_1;     // sums of e^((z - max)/T) and e^(z - max)
  double cross;          // as in TileSums
  double labels;         // as in TileSums
  double logits;         // sum of z, for label smoothing
  double moment;         // as in TileSums
  double finite;         // sum of the finite z, or of v z over them
};

struct Layout {
  int64_t width, tiles, slots;  // columns of a tile, padded; tiles of a row; tiles whose exponentials are kept
  int64_t extra, members;       // extra teachers; all members
  int64_t shifted, at_1, less, result, label, exps;                         // offsets in bytes
  int64_t tile_sums, row_sums, tile_labels, tile_pairs, row_pairs, row_js, standards, moments, asides;
  int64_t bytes;
};

inline int64_t extra_teachers(const KDProblem& p) {
  switch (p.targets) {
    case Targets::ensemble: return 0;
    case Targets::logits: return p.students;
    default: return p.num_teachers;
  }
}

// Whether labels may have a spread part that differs from class to class.
inline bool has_spread_labels(const KDProblem& p) {
  return p.probabilities || (p.class_weights && p.label_smoothing > 0);
}

inline Layout layout_of(const KDProblem& p) {
  Layout l;
  const bool pairs = p.targets == Targets::probabilities;
  l.extra = extra_teachers(p);
  l.members = p.students + 1 + l.extra;
  l.width = p.classes < TILE ? round_up(p.classes, LINE / 4) : TILE;
  l.tiles = (p.classes + l.width - 1) / l.width;
  const bool keep = power_of(p) > 0 && l.tiles * l.width * l.members * 4 <= KEEP_BYTES;
  l.slots = p.grads && keep && p.divergence == Divergence::forward ? l.tiles : 1;
  l.bytes = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t offset = l.bytes;
    l.bytes += round_up(bytes, LINE);
    return offset;
  };
  const int64_t vector = l.width * 4, learns = p.ensemble_ce_weight != 0, spread = has_spread_labels(p);
  // The ensemble and the extra teachers; then each student, if students may be sources of probabilities, or one
  // external teacher at a time, if its logits are mixed.
  l.shifted = take((1 + l.extra + (pairs ? p.students : p.targets == Targets::logits && p.num_teachers > 0)) * vector);
  l.exps = take(l.slots * l.members * vector);
  l.tile_sums = take(l.tiles * l.members * int64_t{sizeof(TileSums)});
  l.row_sums = take(l.members * int64_t{sizeof(RowSums)});
  l.at_1 = take(learns * vector);
  const bool apart = power_of(p) == APART;
  l.less = take((pairs || learns || spread || apart || p.divergence != Divergence::forward) * vector);
  l.label = take(spread * vector);
  l.tile_labels = take(spread * l.tiles * int64_t{sizeof(double)});
  l.result = take((pairs || apart) * vector);
  const int64_t pair_bytes = pairs * p.students * p.sources() * int64_t{sizeof(double)};
  l.tile_pairs = take(l.tiles * pair_bytes);
  l.row_pairs = take(pair_bytes);
  const int64_t targets = p.students * (pairs ? p.sources() : 1);
  l.row_js = take(p.divergence == Divergence::js ? targets * int64_t{sizeof(JensenShannon)} : 0);
  l.standards = take(apart * l.members * int64_t{sizeof(Standard)});
  l.moments = take(apart * l.members * int64_t{sizeof(Moments)});
  l.asides = take((p.divergence == Divergence::decoupled) * l.members * int64_t{sizeof(Aside)});
  return l;
}

}  // namespace
}  // namespace oekd::OEKD_ISA
