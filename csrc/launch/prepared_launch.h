// A launch of a Triton kernel in which only addresses and a few numbers change from call to call.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace oekd {

// Where one argument of a kernel comes from. Python writes it as (source, index, offset); see parse().
struct Argument {
  enum class Source { CONSTANT, INPUT, BLOCK, NUMBER, TUPLE };

  // ("constant", value), ("input", i), ("block", i, offset in bytes), ("number", i) or ("tuple", arguments).
  static Argument parse(const py::tuple& description);

  Source source = Source::CONSTANT;
  py::object constant;
  size_t index = 0;
  uint64_t offset = 0;
  std::vector<Argument> items;
};

// A tensor that a launch returns: a part of a block.
struct Output {
  size_t block;
  int64_t offset;  // in elements
  at::ScalarType dtype;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
};

class PreparedLaunch {
 public:
  // launch: called with the arguments of the kernel, addresses as integers.
  // blocks: bytes of each allocation that a call makes.
  // outputs: (block, offset in elements, dtype, sizes, strides) of each.
  static std::shared_ptr<PreparedLaunch> make(py::object launch, const py::list& arguments, std::vector<int64_t> blocks,
                                              const py::list& outputs);

  // Allocates, launches and returns the outputs. Needs the GIL.
  std::vector<at::Tensor> run(c10::Device device, const std::vector<uint64_t>& inputs,
                              const std::vector<double>& numbers) const;

 private:
  py::object launch_;
  std::vector<Argument> arguments_;
  std::vector<int64_t> blocks_;
  std::vector<Output> outputs_;
};

}  // namespace oekd
