// What torch keeps for each thread, carried from the caller to the threads that work for it.
#pragma once

#include <ATen/ThreadLocalState.h>

namespace oekd {

// Grad and inference mode, autocast, dispatch and function modes, hooks: as they are where it is made.
class CallerState {
 public:
  CallerState();

  // While it lives, its thread has the caller's state.
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
  // ThreadLocalState leaves these two out. Without the nesting, an autocast block that ends inside a student would
  // empty the cache of casts, which all threads share.
  const bool cache_enabled_;
  const int nesting_;
};

}  // namespace oekd
