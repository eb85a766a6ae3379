#include "cpu/stable/boxed.h"

#include <torch/csrc/stable/c/shim.h>

#include <stdexcept>

namespace oekd {

// torch::stable::detail::to<std::string> never frees a copy of the text.
std::string Arguments::text() {
  const auto handle = read<StringHandle>();
  size_t length = 0;
  const char* data = nullptr;
  const bool readable =
      torch_string_length(handle, &length) == TORCH_SUCCESS && torch_string_c_str(handle, &data) == TORCH_SUCCESS;
  const std::string copy = readable ? std::string(data, length) : std::string();
  if (torch_delete_string(handle) != TORCH_SUCCESS || !readable) throw std::runtime_error("isa: unreadable text");
  return copy;
}

}  // namespace oekd
