#include "side_streams.h"

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <pybind11/pybind11.h>

namespace oekd {
namespace {

template <class Guard>
auto is_capturing(const Guard& guard, c10::Stream stream, int) -> decltype(guard.isStreamCapturing(stream)) {
  return guard.isStreamCapturing(stream);
}

// Older versions of torch have no isStreamCapturing; in those only CUDA captures.
template <class Guard>
bool is_capturing(const Guard&, c10::Stream, long) {
  return pybind11::module_::import("torch").attr("cuda").attr("is_current_stream_capturing")().cast<bool>();
}

}  // namespace

SideStreams::SideStreams(c10::Device device, size_t students)
    : guard_(device.type()), device_(device.has_index() ? device : guard_.getDevice()) {
  for (size_t j = 0; j < students; ++j) {
    streams_.push_back(guard_.getStreamFromGlobalPool(device_, /*isHighPriority=*/j == 0));
  }
}

void SideStreams::run(const std::function<void(size_t)>& student) const {
  const c10::Stream caller = guard_.getStream(device_);
  c10::Event fork(device_.type());
  fork.record(caller);
  for (size_t j = 0; j < streams_.size(); ++j) {
    const c10::StreamGuard side(streams_[j]);
    fork.block(streams_[j]);
    student(j);
    c10::Event join(device_.type());
    join.record(streams_[j]);
    join.block(caller);
  }
}

bool SideStreams::capturing() const { return is_capturing(guard_, guard_.getStream(device_), 0); }

void SideStreams::used_by_student(const at::Tensor& tensor, size_t student) const {
  used_by(tensor, streams_[student]);
}

void SideStreams::used_by_caller(const at::Tensor& tensor) const { used_by(tensor, guard_.getStream(device_)); }

void SideStreams::used_by(const at::Tensor& tensor, c10::Stream stream) const {
  if (tensor.device() == device_ && tensor.has_storage()) {
    guard_.recordDataPtrOnStream(tensor.storage().data_ptr(), stream);
  }
}

}  // namespace oekd
