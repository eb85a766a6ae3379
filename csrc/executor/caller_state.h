// Transfers the thread-local state of torch from the caller to the worker threads.
#pragma once

#include <ATen/ThreadLocalState.h>

namespace oekd {

// A copy of the grad and inference mode, autocast state, dispatch and function modes, and hooks of the current thread.
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
    const at::ThreadLocalStateGuard state_;
    const bool cache_enabled_;
    const int nesting_;
  };

 private:
  const at::ThreadLocalState state_;
  // at::ThreadLocalState does not contain these two. Without the nesting level, the end of an autocast block inside a
  // student would clear the cache of casts, which all threads share.
  const bool cache_enabled_;
  const int nesting_;
};

}  // namespace oekd
