#include "caller_state.h"

#include <ATen/autocast_mode.h>

namespace oekd {
namespace {

int autocast_nesting() {
  const int nesting = at::autocast::increment_nesting() - 1;
  at::autocast::decrement_nesting();
  return nesting;
}

}  // namespace

CallerState::CallerState() : cache_enabled_(at::autocast::is_autocast_cache_enabled()), nesting_(autocast_nesting()) {}

CallerState::Guard::Guard(const CallerState& caller)
    : state_(caller.state_), cache_enabled_(at::autocast::is_autocast_cache_enabled()), nesting_(caller.nesting_) {
  at::autocast::set_autocast_cache_enabled(caller.cache_enabled_);
  for (int i = 0; i < nesting_; ++i) at::autocast::increment_nesting();
}

CallerState::Guard::~Guard() {
  for (int i = 0; i < nesting_; ++i) at::autocast::decrement_nesting();
  at::autocast::set_autocast_cache_enabled(cache_enabled_);
}

}  // namespace oekd
