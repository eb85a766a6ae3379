// Memory that a kernel needs for intermediate results.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace oekd {

struct FreeScratch {
  void operator()(void* p) const { std::free(p); }
};

// Returns uninitialised memory that is aligned to cache lines; throws std::bad_alloc.
template <class T>
std::unique_ptr<T, FreeScratch> allocate_scratch(int64_t bytes) {
  constexpr int64_t LINE = 64;
  std::unique_ptr<T, FreeScratch> scratch(static_cast<T*>(std::aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE)));
  if (!scratch) throw std::bad_alloc();
  return scratch;
}

}  // namespace oekd
