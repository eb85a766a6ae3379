// When the kernel runs that has neighbouring rows in the lanes of vectors.
#pragma once

#include "cpu/ensemble_kd/ensemble_kd.h"

namespace oekd {

// Whether the kernel with rows in lanes supports a problem and is the faster one: the classes of a row are apart in
// memory and rows are adjacent, as in logits [B, C, H, W], and a block of rows fits the second-level cache.
bool suits_lanes(const KDProblem& problem);

}  // namespace oekd
