// Errors of the ops, whose text is "name: expected X, got Y".
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>

namespace oekd {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

template <class Part>
void write(std::ostream& out, const Part& part) {
  out << part;
}

inline void write(std::ostream& out, Sizes sizes) {
  out << '[';
  for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  out << ']';
}

// Returns the parts as one text.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (write(out, parts), ...);
  return out.str();
}

}  // namespace oekd

// The stable ABI has no exceptions of its own. Before 2.15, torch translates std::invalid_argument to ValueError; since
// then to RuntimeError, of which oekd_fast/common/op_errors.py makes a ValueError.
#define OEKD_CHECK(condition, ...)                                                       \
  do {                                                                                   \
    if (!(condition)) [[unlikely]] throw std::invalid_argument(oekd::text(__VA_ARGS__)); \
  } while (false)
