// What identifies a call of the ensemble distillation loss among those whose launches are prepared.
#pragma once

#include <c10/core/Stream.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace oekd {

struct CallKey {
  // Reads the arguments of a call; nullopt if a prepared launch cannot run it: a tensor is not a plain one [rows,
  // classes] or [rows] on the current device of type `device`, an option is a tensor, or a mode or transform of PyTorch
  // is active. `options` are the fields of KDOptions, temperature, ce_weight and kd_weight first; `beside` is what else
  // the call depends on.
  static std::optional<CallKey> read(c10::DeviceType device, bool with_gradients, py::handle logits, py::handle target,
                                     py::handle options, py::handle beside);

  // Everything that the checks of the arguments, the plan, and Triton's specialisation of a kernel depend on.
  std::string bytes;
  std::vector<at::Tensor> logits;
  at::Tensor target;             // undefined if there is none
  std::vector<double> numbers;   // temperature, ce_weight, kd_weight
  std::vector<uint64_t> inputs;  // addresses of the logits, then of the target
  bool differentiable;           // autograd needs a node
  c10::Stream stream;
};

// Whether `tensor` is a dense tensor that nothing wraps.
bool is_plain(const at::Tensor& tensor);

// Whether a dispatch mode, a transform of torch.func or a tracer sees each operator.
bool something_watches();

}  // namespace oekd
