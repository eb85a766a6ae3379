// A CUDA device without a GPU for a PyTorch that was built without CUDA: tensors in host memory that say they are on
// CUDA, one stream, and the few operators that the ensemble distillation loss calls around its kernels.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace {

const c10::Device DEVICE(c10::kCUDA, 0);

// Keeps freed blocks by size, as CUDA's caching allocator does.
struct CachingAllocator final : c10::Allocator {
  std::mutex mutex;
  std::map<size_t, std::vector<void*>> free_blocks;

  struct Block {
    size_t bytes;
    void* data;
  };

  static CachingAllocator& get() {
    static CachingAllocator* allocator = new CachingAllocator;
    return *allocator;
  }

  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    const std::lock_guard lock(get().mutex);
    get().free_blocks[block->bytes].push_back(block->data);
    delete block;
  }

  c10::DataPtr allocate(size_t bytes) override {
    bytes = (bytes + 511) / 512 * 512;
    void* data = nullptr;
    {
      const std::lock_guard lock(mutex);
      auto& blocks = free_blocks[bytes];
      if (!blocks.empty()) {
        data = blocks.back();
        blocks.pop_back();
      }
    }
    if (data == nullptr && bytes > 0) data = aligned_alloc(512, bytes);
    return {data, new Block{bytes, data}, &release, DEVICE};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void* event, const c10::Stream&) const override {}
  bool queryEvent(void* event) const override { return true; }
};

// Autograd asks which accelerator there is.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};

const c10::DispatchKeySet KEYS(c10::DispatchKey::CUDA);

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &CachingAllocator::get(), KEYS, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &CachingAllocator::get(), KEYS, c10::dtype_or_default(dtype));
}

// Writes nothing: the values are never read.
at::Tensor& unwritten(at::Tensor& self) { return self; }
at::Tensor& unwritten_scalar(at::Tensor& self, const at::Scalar&) { return self; }

}  // namespace

namespace at {
using ::CUDAHooks;
REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace at

C10_REGISTER_GUARD_IMPL(CUDA, Guard);

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("zero_", unwritten);
  m.impl("fill_.Scalar", unwritten_scalar);
}
