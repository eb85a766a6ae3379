// A stream for each student on any device that has streams, by torch's device-generic interface. No synchronisation.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <functional>
#include <vector>

namespace oekd {

class SideStreams {
 public:
  // Streams of the device's pool; they repeat where it has fewer.
  SideStreams(c10::Device device, size_t students);

  // Calls student(j) for each j in turn, on stream j: forked from the current stream, and joined to it afterwards.
  // Students do not throw.
  void run(const std::function<void(size_t)>& student) const;

  // Whether the current stream is being captured in a graph. With the GIL.
  bool capturing() const;

  // The memory of a tensor is also used by student j, or by the current stream: it is not reused before they are done.
  void used_by_student(const at::Tensor& tensor, size_t student) const;
  void used_by_caller(const at::Tensor& tensor) const;

 private:
  void used_by(const at::Tensor& tensor, c10::Stream stream) const;

  c10::impl::VirtualGuardImpl guard_;
  c10::Device device_;
  std::vector<c10::Stream> streams_;
};

}  // namespace oekd
