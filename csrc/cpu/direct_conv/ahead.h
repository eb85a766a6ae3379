// Requests of memory ahead of its use.
#pragma once

#include <cstdint>

#include "cpu/simd/vec.h"

namespace oekd::OEKD_ISA {

// Arrays that will soon be read or written. They are moved to the second-level cache in parts, between tiles, so that
// the transfer overlaps the sums. The processor does not do so by itself, since nothing else reads them meanwhile.
class Ahead {
 public:
  // Adds `count` floats. At most MOST arrays.
  void add(const float* from, int64_t count) { ranges_[size_++] = {from, count}; }

  // Requests one of `parts` equal parts of what is left.
  void request(int64_t parts) {
    for (int i = 0; i < size_; ++i) {
      Range& range = ranges_[i];
      const int64_t end = range.left - (range.left + parts - 1) / parts;
      for (; range.left > end; range.left -= LINE, range.from += LINE) __builtin_prefetch(range.from, 0, 2);
    }
  }

 private:
  static constexpr int MOST = 3;
  static constexpr int64_t LINE = 16;  // floats of a cache line
  struct Range {
    const float* from;
    int64_t left;
  };
  Range ranges_[MOST];
  int size_ = 0;
};

}  // namespace oekd::OEKD_ISA
