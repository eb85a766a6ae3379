// Runs the students of a family side by side: on host threads (CPU) or on streams of the device.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "host_pool.h"
#include "side_streams.h"

namespace oekd {

// What students raised, by index, ascending. All students run, whatever the others raise.
using Faults = std::vector<std::pair<size_t, py::object>>;

class __attribute__((visibility("hidden"))) StudentExecutor {
 public:
  // workers, threads, order: of the host: so many threads with so many intra-op threads each, and who starts first, all
  // students once. The order may change between calls.
  StudentExecutor(size_t num_students, c10::Device device, int workers, int threads, std::vector<size_t> order);
  ~StudentExecutor();

  // branches[j](inputs[j]) of each student; None where it raised. On the host, those in `serial` run one after the
  // other, in that order, before the rest is started.
  std::pair<std::vector<py::object>, Faults> forward(const std::vector<py::object>& branches,
                                                     const std::vector<py::object>& inputs,
                                                     const std::vector<size_t>& serial);

  // The backward pass of each student's graph from its roots; nothing for a student without roots.
  Faults backward(const std::vector<std::vector<at::Tensor>>& roots,
                  const std::vector<std::vector<std::optional<at::Tensor>>>& grads);

  const std::vector<size_t>& order() const { return order_; }
  void set_order(std::vector<size_t> order);

  // Whether the calling thread works for this executor: its students then run in turn, in that thread.
  bool inside() const;

 private:
  using Student = std::function<void(size_t)>;

  Faults run(const Student& student, const std::vector<size_t>& serial);
  void run_on_host(const Student& student, const std::vector<size_t>& serial);
  HostPool& pool();

  const size_t num_students_;
  const int workers_, threads_;
  std::vector<size_t> order_;
  std::optional<SideStreams> streams_;  // none: the host
  std::unique_ptr<HostPool> pool_;
};

}  // namespace oekd
