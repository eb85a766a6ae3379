// One kind of call of the ensemble distillation loss, whose launches are prepared.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <vector>

#include "launch/call_key.h"
#include "launch/prepared_launch.h"

namespace oekd {

struct PreparedCall {
  // backward, other_backward: null unless the calls are differentiable.
  static std::shared_ptr<const PreparedCall> make(std::shared_ptr<PreparedLaunch> forward,
                                                  std::shared_ptr<PreparedLaunch> backward, py::object other_backward);

  std::shared_ptr<PreparedLaunch> forward;
  std::shared_ptr<PreparedLaunch> backward;
  // Computes what `backward` cannot: (logits, target, row_statistics, counted, upstream, numbers) -> gradients.
  py::object other_backward;
};

// Runs a call and returns its outputs. The first is the loss; autograd knows how to differentiate it if the call is
// differentiable. Needs the GIL.
std::vector<at::Tensor> run(std::shared_ptr<const PreparedCall> prepared, CallKey&& call);

}  // namespace oekd
