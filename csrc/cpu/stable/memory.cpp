#include "cpu/stable/memory.h"

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdlib>

namespace oekd {
namespace {

// Distance in bytes from the first to the last element.
int64_t span(const Tensor& t) {
  const Sizes sizes = t.sizes(), strides = t.strides();
  int64_t last = 0;
  for (size_t dim = 0; dim < sizes.size(); ++dim) last += (sizes[dim] - 1) * strides[dim];
  return last * static_cast<int64_t>(t.element_size());
}

// Whether |distance - sum_k i_k stride_k| < element for some |i_k| < size_k in the nested dimensions from `level` on.
bool meets(const Addresses& a, size_t level, int64_t distance) {
  if (level == a.nested.size()) return std::abs(distance) < a.element;
  const auto [size, stride] = a.nested[level];
  const int64_t inner = level + 1 < a.nested.size() ? a.reach[level + 1] : 0, slack = inner + a.element - 1;
  if (stride == 0) return meets(a, level + 1, distance);
  // Usually the inner dimensions end before the next element of this one, so that the loop has at most three steps.
  const int64_t least = std::max(-(size - 1), (distance - slack) / stride - 1);
  for (int64_t i = least; i < size && i * stride - distance <= slack; ++i) {
    if (meets(a, level + 1, distance - i * stride)) return true;
  }
  return false;
}

}  // namespace

void check_memory(const char* name, const Tensor& t) {
  if (t.numel() == 0) return;
  const auto size = static_cast<int64_t>(t.element_size());
  const int64_t offset = t.storage_offset() * size;
  const auto needed = static_cast<uint64_t>(offset + span(t) + size);
  int64_t held = 0;
  const bool known = aoti_torch_get_storage_size(t.get(), &held) == TORCH_SUCCESS;
  OEKD_CHECK(known && static_cast<uint64_t>(held) >= needed, name, ": expected a storage of at least ", needed,
             " bytes, got ", held);
  const void* data = nullptr;
  const bool readable = torch_get_const_data_ptr(t.get(), &data) == TORCH_SUCCESS;
  OEKD_CHECK(readable && reinterpret_cast<uintptr_t>(data) != static_cast<uintptr_t>(offset), name,
             ": expected a tensor with memory, got one without, like a FakeTensor");
}

void check_map(const char* name, const Tensor& map) {
  OEKD_CHECK(map.scalar_type() == ScalarType::Float, name, ": expected float32, got ", map.scalar_type());
  OEKD_CHECK(map.dim() == 4, name, ": expected four dimensions, got ", map.sizes());
  OEKD_CHECK(map.is_cpu(), name, ": expected a tensor on the CPU, got ", device_name(map));
  check_memory(name, map);
}

Addresses::Addresses(const Tensor& t)
    : begin(reinterpret_cast<uintptr_t>(t.const_data_ptr())),
      end(t.numel() == 0 ? begin : begin + span(t) + t.element_size()),
      element(static_cast<int64_t>(t.element_size())) {
  const Sizes sizes = t.sizes(), strides = t.strides();
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] > 1) given.push_back({sizes[dim], strides[dim] * element});
  }
  nested = given;
  std::stable_sort(nested.begin(), nested.end(), [](Dimension a, Dimension b) { return a.stride > b.stride; });
  for (size_t level = 0; level < nested.size(); ++level) reach.push_back(0);
  int64_t farthest = 0;
  for (size_t level = nested.size(); level-- > 0;) {
    farthest += (nested[level].size - 1) * nested[level].stride;
    reach[level] = farthest;
  }
}

bool overlaps_itself(const Addresses& a) {
  if (a.begin == a.end) return false;
  // Two elements differ first in one of the dimensions, where the second is farther.
  for (size_t level = 0; level < a.nested.size(); ++level) {
    const auto [size, stride] = a.nested[level];
    const int64_t inner = level + 1 < a.nested.size() ? a.reach[level + 1] : 0;
    for (int64_t i = 1; i < size && i * stride - inner < a.element; ++i) {
      if (meets(a, level + 1, i * stride)) return true;
    }
  }
  return false;
}

Overlap overlap(const Addresses& a, const Addresses& b) {
  if (a.begin >= b.end || b.begin >= a.end) return Overlap::none;
  if (a.element != b.element || a.given != b.given) return Overlap::some;
  if (a.begin == b.begin) return Overlap::same;
  const auto distance = static_cast<int64_t>(a.begin < b.begin ? b.begin - a.begin : a.begin - b.begin);
  return meets(a, 0, distance) ? Overlap::some : Overlap::none;
}

}  // namespace oekd
