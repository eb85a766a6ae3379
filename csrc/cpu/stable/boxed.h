// Arguments and results of an op, as torch's stable ABI passes them: an array of StableIValues in the order of the
// schema. An op takes ownership of all arguments and writes its results over them.
#pragma once

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <optional>
#include <string>
#include <vector>

#include "cpu/stable/tensor.h"

namespace oekd {

// Reads arguments one after the other. Each is read once.
class Arguments {
 public:
  explicit Arguments(StableIValue* stack) : next_(stack) {}

  double number() { return read<double>(); }
  int64_t integer() { return read<int64_t>(); }
  bool flag() { return read<bool>(); }
  Tensor tensor() { return read<Tensor>(); }
  OptionalTensor optional_tensor() { return read<OptionalTensor>(); }
  std::vector<Tensor> tensors() { return read<std::vector<Tensor>>(); }
  std::optional<std::vector<Tensor>> optional_tensors() { return read<std::optional<std::vector<Tensor>>>(); }
  std::string text();

 private:
  template <class T>
  T read() {
    return torch::stable::detail::to<T>(*next_++);
  }

  StableIValue* next_;
};

// Writes the results of an op.
template <class... Results>
void reply(StableIValue* stack, const Results&... results) {
  size_t i = 0;
  ((stack[i++] = torch::stable::detail::from(results)), ...);
}

}  // namespace oekd
