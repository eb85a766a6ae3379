// The calls of the ensemble distillation loss whose launches are prepared. oekd_fast/losses/prepared.py documents them.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "launch/prepared_call.h"

namespace oekd {

class PreparedCalls {
 public:
  // Takes calls with logits on devices of type `device`, and keeps the `capacity` that were used last.
  PreparedCalls(const std::string& device, size_t capacity);

  // Identifies a kind of call, as bytes; None if its launch cannot be prepared. The arguments are those of run().
  py::object key(bool with_gradients, py::handle logits, py::handle target, py::handle options,
                   py::handle beside) const;

  void insert(const std::string& key, std::shared_ptr<PreparedLaunch> forward, std::shared_ptr<PreparedLaunch> backward,
              py::object other_backward);

  // Returns the outputs of a call as a tuple; None if no launch is prepared for it.
  py::object run(bool with_gradients, py::handle logits, py::handle target, py::handle options, py::handle beside);

  size_t size() const { return calls_.size(); }

 private:
  using Calls = std::list<std::pair<std::string, std::shared_ptr<const PreparedCall>>>;

  std::shared_ptr<const PreparedCall> find(const std::string& key);

  const c10::DeviceType device_;
  const size_t capacity_;
  Calls calls_;  // the one used last comes first
  std::unordered_map<std::string_view, Calls::iterator> by_key_;  // keys are those in `calls_`
};

}  // namespace oekd
