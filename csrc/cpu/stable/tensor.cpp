#include "cpu/stable/tensor.h"

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace oekd {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

// The C interface keeps the text of an error to itself.
void check_call(AOTITorchError status, const char* what) {
  if (status != TORCH_SUCCESS) throw std::runtime_error(std::string(what) + ": the call of torch failed");
}

// Multiplies sizes. Tensors without elements, and expanded ones, may have any.
int64_t times(int64_t a, int64_t b) {
  int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) throw std::runtime_error("sizes: expected a product below 2^63");
  return product;
}

Tensor empty_strided(Sizes sizes, Sizes strides, ScalarType dtype) {
  AtenTensorHandle made = nullptr;
  const AOTITorchError status =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               to<int32_t>(from(dtype)), aoti_torch_device_type_cpu(), 0, &made);
  if (status != TORCH_SUCCESS) throw std::runtime_error(text("could not allocate a tensor ", sizes));
  return Tensor(made);
}

}  // namespace

bool is_channels_last(const Tensor& t) {
  const Sizes sizes = t.sizes(), strides = t.strides();
  int64_t expected = 1;
  for (const size_t dim : {1, 3, 2, 0}) {
    if (sizes[dim] != 1 && strides[dim] != expected) return false;
    expected = times(expected, sizes[dim]);
  }
  return true;
}

Tensor empty(Sizes sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t dim = sizes.size(); dim-- > 1;) strides[dim - 1] = times(strides[dim], std::max<int64_t>(sizes[dim], 1));
  return empty_strided(sizes, strides, dtype);
}

Tensor empty_images(Sizes sizes, ScalarType dtype) {
  const int64_t channels = sizes[1], row = times(sizes[3], channels), image = times(sizes[2], row);
  return empty_strided(sizes, {image, 1, row, channels}, dtype);
}

Tensor empty_like(const Tensor& t) {
  return t.is_contiguous() ? empty_strided(t.sizes(), t.strides(), t.scalar_type()) : torch::stable::empty_like(t);
}

Tensor contiguous(const Tensor& t, ScalarType dtype) {
  if (t.is_contiguous() && t.scalar_type() == dtype) return t;
  Tensor made = empty(t.sizes(), dtype);
  copy(t, made);
  return made;
}

Tensor channels_last(const Tensor& t) {
  if (is_channels_last(t)) return t;
  Tensor made = empty_images(t.sizes(), t.scalar_type());
  copy(t, made);
  return made;
}

Tensor view(const Tensor& t, Sizes sizes, Sizes strides, int64_t offset) {
  AtenTensorHandle made = nullptr;
  check_call(aoti_torch__reinterpret_tensor(t.get(), static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                            offset, &made),
             "view");
  return Tensor(made);
}

void copy(const Tensor& from, const Tensor& to) {
  check_call(aoti_torch_copy_(to.get(), from.get(), /*non_blocking=*/0), "copy");
}

Tensor resolve_neg(const Tensor& t) {
  StableIValue stack[] = {from(t)};
  check_call(torch_call_dispatcher("aten::resolve_neg", "", stack, TORCH_ABI_VERSION), "resolve_neg");
  return to<Tensor>(stack[0]);
}

double item(const Tensor& t) {
  double value = 0;
  check_call(aoti_torch_item_float64(t.get(), &value), "item");
  return value;
}

bool is_floating(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::Half:
    case ScalarType::BFloat16:
    case ScalarType::Float8_e5m2:
    case ScalarType::Float8_e4m3fn:
    case ScalarType::Float8_e5m2fnuz:
    case ScalarType::Float8_e4m3fnuz:
      return true;
    default:
      return false;
  }
}

bool is_integral(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Short:
    case ScalarType::Int:
    case ScalarType::Long:
    case ScalarType::UInt16:
    case ScalarType::UInt32:
    case ScalarType::UInt64:
      return true;
    default:
      return false;
  }
}

std::string device_name(const Tensor& t) {
  int32_t type = 0;
  check_call(aoti_torch_get_device_type(t.get(), &type), "device");
  const std::pair<int32_t, const char*> names[] = {
      {aoti_torch_device_type_cpu(), "cpu"}, {aoti_torch_device_type_cuda(), "cuda"},
      {aoti_torch_device_type_meta(), "meta"}, {aoti_torch_device_type_mps(), "mps"},
      {aoti_torch_device_type_xpu(), "xpu"},
  };
  std::string name = text("device type ", type);
  for (const auto& [known, word] : names) {
    if (known == type) name = word;
  }
  const int32_t index = t.get_device_index();
  return index < 0 ? name : text(name, ":", index);
}

}  // namespace oekd
