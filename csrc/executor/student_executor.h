// Runs the students of a family side by side, on host threads (CPU) or on streams of a device.
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

// Exceptions of the students with their indices, in ascending order. An exception does not stop other students.
using Faults = std::vector<std::pair<size_t, py::object>>;

class __attribute__((visibility("hidden"))) StudentExecutor {
 public:
  // On the CPU: number of worker threads, intra-op threads of each, and the order in which students start. `order` has
  // every student once and may change between calls. Threads start with the first call that needs them, at most one a
  // student.
  StudentExecutor(size_t num_students, c10::Device device, int workers, int threads, std::vector<size_t> order);
  ~StudentExecutor();

  // pybind11 allocates an object whose __init__ was skipped through this operator, and would use it uninitialised.
  // Other code makes objects with `::new`.
  static void* operator new(size_t) { throw py::type_error("StudentExecutor: expected __init__ to be called first"); }
  static void operator delete(void* memory) { ::operator delete(memory); }

  // Returns branches[j](inputs[j]) of each student, or None if it raised. On the CPU, one worker runs the students in
  // `serial` one after the other in that order; this task starts first. Concurrent calls have threads of their own.
  std::pair<std::vector<py::object>, Faults> forward(const std::vector<py::object>& branches,
                                                     const std::vector<py::object>& inputs,
                                                     const std::vector<size_t>& serial);

  // Runs the backward pass of each student from its roots. A student without roots is skipped.
  Faults backward(const std::vector<std::vector<py::object>>& roots, const std::vector<std::vector<py::object>>& grads);

  const std::vector<size_t>& order() const { return order_; }
  void set_order(std::vector<size_t> order);

  // Whether the calling thread runs a student of this executor. A nested call then runs all students in that thread.
  bool inside() const;

 private:
  using Student = std::function<void(size_t)>;

  Faults run(const Student& student, const std::vector<size_t>& serial);
  void run_on_host(const Student& student, const std::vector<size_t>& serial);
  std::unique_ptr<HostPool> take_pool();

  const size_t num_students_;
  const int workers_, threads_;
  std::vector<size_t> order_;
  std::optional<SideStreams> streams_;  // empty on the CPU
  // Pools that no call is using; the GIL guards them. There are as many as calls have overlapped.
  std::vector<std::unique_ptr<HostPool>> idle_;
};

}  // namespace oekd
