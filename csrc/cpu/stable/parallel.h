// Torch's intra-op threads, through its C interface.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace oekd {

// Calls work(begin, end) for parts of [0, count) of at least `grain` on torch's threads. The C interface keeps the
// texts of their errors to itself.
template <class Work>
void parallel_for(const char* op, int64_t count, int64_t grain, Work work) {
  const auto call = [](int64_t begin, int64_t end, void* w) { (*static_cast<Work*>(w))(begin, end); };
  if (torch_parallel_for(0, count, grain, call, &work) != TORCH_SUCCESS) {
    throw std::runtime_error(std::string(op) + ": a worker thread failed (out of memory?)");
  }
}

}  // namespace oekd
