// Transfers the thread-local state of torch, Python and the processor from the caller to the worker threads.
#pragma once

#include <ATen/ThreadLocalState.h>
#include <pybind11/pybind11.h>

#include <cfenv>

namespace oekd {

// A copy of the grad and inference mode, autocast state, dispatch and function modes, functorch transforms and hooks of
// the current thread, of its context variables, and of its floating-point environment (rounding, denormal numbers).
// It serves one guard at a time, because a Python context can be entered only once. Everything here needs the GIL.
class CallerState {
 public:
  CallerState();

  // Sets the caller's state in the current thread for the lifetime of the guard.
  class Guard {
   public:
    explicit Guard(const CallerState& caller);
    ~Guard();
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    const CallerState& caller_;
    const at::ThreadLocalStateGuard state_;
    const bool cache_enabled_;
    std::fenv_t floating_point_;
  };

 private:
  const at::ThreadLocalState state_;
  // at::ThreadLocalState does not contain these two. Without the nesting level, the end of an autocast block inside a
  // student would clear the cache of casts, which all threads share.
  const bool cache_enabled_;
  const int nesting_;
  const pybind11::object context_;
  std::fenv_t floating_point_;
};

}  // namespace oekd
