// A device that computes nothing and logs the calls of its streams. Tests compile it and load it with ctypes.
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <set>
#include <sstream>
#include <string>

namespace {

constexpr auto TYPE = c10::DeviceType::PrivateUse1;
constexpr int POOL = 4;  // streams 1 to 4, and 11 to 14 of high priority; 0 is the default stream

std::ostringstream written;
std::string text;
int events = 0, living_events = 0, streams[2] = {};
bool capturing = false, broken = false;
thread_local c10::StreamId current = 0;

c10::Stream stream_of(c10::StreamId id) { return c10::Stream(c10::Stream::UNSAFE, c10::Device(TYPE, 0), id); }

struct FakeGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return TYPE; }
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Device getDevice() const override { return c10::Device(TYPE, 0); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }

  c10::Stream getStream(c10::Device) const noexcept override { return stream_of(current); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool high_priority) const override {
    return stream_of(10 * high_priority + 1 + streams[high_priority]++ % POOL);
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override {
    const c10::Stream before = stream_of(current);
    current = stream.id();
    return before;
  }
  bool isStreamCapturing(const c10::Stream&) const { return capturing; }  // not in the base class of every torch, hence no "override"

  void record(void** event, const c10::Stream& stream, c10::DeviceIndex, c10::EventFlag) const override {
    TORCH_CHECK(!broken, "the device is broken");
    if (!*event) {
      *event = new int(++events);
      ++living_events;
    }
    written << "event " << *static_cast<int*>(*event) << " on stream " << stream.id() << "\n";
  }
  void block(void* event, const c10::Stream& stream) const override {
    written << "stream " << stream.id() << " waits for event " << *static_cast<int*>(event) << "\n";
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
    delete static_cast<int*>(event);
    --living_events;
  }
  void synchronizeStream(const c10::Stream&) const override { written << "synchronised\n"; }
  void synchronizeEvent(void*) const override { written << "synchronised\n"; }
  void synchronizeDevice(c10::DeviceIndex) const override { written << "synchronised\n"; }
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream& stream) const override {
    written << "memory used by stream " << stream.id() << "\n";
  }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, FakeGuard)

}  // namespace

extern "C" {
void note(const char* what) { written << what << " on stream " << current << "\n"; }
void set_stream(int id) { current = id; }
void set_capturing(bool value) { capturing = value; }
void set_broken(bool value) { broken = value; }
int count_living_events() { return living_events; }
// Returns and clears the log.
const char* read_log() {
  text = written.str();
  written.str("");
  events = 0;
  return text.c_str();
}
}
