#include "cpu/memory.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace oekd {
namespace {

// Distance in bytes from the first to the last element.
int64_t span(const at::Tensor& t) {
  int64_t last = 0;
  for (int64_t dim = 0; dim < t.dim(); ++dim) last += (t.size(dim) - 1) * t.stride(dim);
  return last * static_cast<int64_t>(t.element_size());
}

// Whether |distance - j * inner_stride| < element for some |j| < inner_size.
bool inner_meets(const Addresses& a, int64_t distance) {
  const int64_t d = std::abs(distance), stride = a.inner_stride;
  if (d < a.element) return true;
  if (stride == 0) return false;
  const int64_t before = std::min(d / stride, a.inner_size - 1);  // the others are farther away
  return d - before * stride < a.element || (before + 1 < a.inner_size && (before + 1) * stride - d < a.element);
}

// Whether |distance - i * outer_stride - j * inner_stride| < element for some first <= i < outer_size and
// |j| < inner_size, where distance >= 0.
bool meets(const Addresses& a, int64_t distance, int64_t first) {
  const int64_t reach = (a.inner_size - 1) * a.inner_stride + a.element - 1;
  if (a.outer_stride > 0) first = std::max(first, (distance - reach) / a.outer_stride);
  // Usually a row of elements ends before the next one starts, so that the loop has at most three steps.
  for (int64_t i = first; i < a.outer_size && i * a.outer_stride - distance <= reach; ++i) {
    if (inner_meets(a, distance - i * a.outer_stride)) return true;
  }
  return false;
}

}  // namespace

void check_memory(const char* name, const at::Tensor& t) {
  if (t.numel() == 0) return;
  const auto size = static_cast<int64_t>(t.element_size());
  const auto needed = static_cast<size_t>(t.storage_offset() * size + span(t) + size);
  const at::Storage& storage = t.storage();
  TORCH_CHECK_VALUE(storage.nbytes() >= needed, name, ": expected a storage of at least ", needed, " bytes, got ",
                    storage.nbytes());
  TORCH_CHECK_VALUE(storage.data(), name, ": expected a tensor with memory, got one without, like a FakeTensor");
}

Addresses::Addresses(const at::Tensor& t)
    : begin(reinterpret_cast<uintptr_t>(t.const_data_ptr())),
      end(t.numel() == 0 ? begin : begin + span(t) + t.element_size()),
      element(static_cast<int64_t>(t.element_size())) {
  if (t.dim() > 0 && t.size(t.dim() - 1) > 1) {
    inner_size = t.size(t.dim() - 1);
    inner_stride = t.stride(t.dim() - 1) * element;
  }
  if (t.dim() > 1 && t.size(0) > 1) {
    outer_size = t.size(0);
    outer_stride = t.stride(0) * element;
  }
  if (outer_stride < inner_stride) {
    std::swap(outer_size, inner_size);
    std::swap(outer_stride, inner_stride);
  }
}

bool overlaps_itself(const Addresses& a) {
  if (a.begin == a.end) return false;
  return (a.inner_size > 1 && a.inner_stride < a.element) || meets(a, 0, 1);
}

Overlap overlap(const Addresses& a, const Addresses& b) {
  if (a.begin >= b.end || b.begin >= a.end) return Overlap::none;
  if (a.element != b.element || a.outer_size != b.outer_size || a.inner_size != b.inner_size ||
      a.outer_stride != b.outer_stride || a.inner_stride != b.inner_stride) {
    return Overlap::some;
  }
  if (a.begin == b.begin) return Overlap::same;
  const auto distance = static_cast<int64_t>(a.begin < b.begin ? b.begin - a.begin : a.begin - b.begin);
  return meets(a, distance, 1 - a.outer_size) ? Overlap::some : Overlap::none;
}

}  // namespace oekd
