#include "caller_state.h"

#include <ATen/autocast_mode.h>

namespace oekd {
namespace {

int autocast_nesting() {
  const int nesting = at::autocast::increment_nesting() - 1;
  at::autocast::decrement_nesting();
  return nesting;
}

pybind11::object copy_of_context() {
  PyObject* const context = PyContext_CopyCurrent();
  if (!context) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(context);
}

}  // namespace

CallerState::CallerState()
    : cache_enabled_(at::autocast::is_autocast_cache_enabled()),
      nesting_(autocast_nesting()),
      context_(copy_of_context()) {
  std::fegetenv(&floating_point_);
}

CallerState::Guard::Guard(const CallerState& caller)
    : caller_(caller), state_(caller.state_), cache_enabled_(at::autocast::is_autocast_cache_enabled()) {
  if (PyContext_Enter(caller.context_.ptr()) != 0) throw pybind11::error_already_set();
  at::autocast::set_autocast_cache_enabled(caller.cache_enabled_);
  for (int i = 0; i < caller.nesting_; ++i) at::autocast::increment_nesting();
  std::fegetenv(&floating_point_);
  std::fesetenv(&caller.floating_point_);
}

CallerState::Guard::~Guard() {
  std::fesetenv(&floating_point_);
  for (int i = 0; i < caller_.nesting_; ++i) at::autocast::decrement_nesting();
  at::autocast::set_autocast_cache_enabled(cache_enabled_);
  if (PyContext_Exit(caller_.context_.ptr()) != 0) PyErr_WriteUnraisable(caller_.context_.ptr());
}

}  // namespace oekd
