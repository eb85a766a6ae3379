// One stream for each student on any device with streams, through torch's device-generic interface. No synchronisation.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <functional>
#include <vector>

namespace oekd {

class SideStreams {
 public:
  // Takes streams from the device's pools. Students share streams if a pool has fewer. Student 0, the largest, gets one
  // of high priority: all others wait for it at the end, so that its kernels should not wait for theirs.
  SideStreams(c10::Device device, size_t students);

  // Calls student(j) for each j in order on stream j, which is forked from the current stream and joined to it
  // afterwards. Students must not throw.
  void run(const std::function<void(size_t)>& student) const;

  // Whether the current stream is being captured in a graph. Needs the GIL.
  bool capturing() const;

  // Record that student j, or the current stream, uses the memory of a tensor, so that it is not reused too early.
  void used_by_student(const at::Tensor& tensor, size_t student) const;
  void used_by_caller(const at::Tensor& tensor) const;

 private:
  void used_by(const at::Tensor& tensor, c10::Stream stream) const;

  c10::impl::VirtualGuardImpl guard_;
  c10::Device device_;
  std::vector<c10::Stream> streams_;
};

}  // namespace oekd
