// Where the elements of a CPU tensor are: checks before a kernel reads or writes them through pointers.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <cstdint>

namespace oekd {

// Raises ValueError if the storage of `t` does not hold all of its elements: it may have been resized, or have no
// memory, like that of a FakeTensor.
void check_memory(const char* name, const at::Tensor& t);

// A dimension of more than one element; the stride is in bytes.
struct Dimension {
  int64_t size, stride;
  bool operator==(const Dimension&) const = default;
};

// The addresses of a tensor's elements.
struct Addresses {
  // `t` passes check_memory. Its data must not move afterwards (copy-on-write).
  explicit Addresses(const at::Tensor& t);

  uintptr_t begin, end;  // equal if there are no elements
  int64_t element;       // size of an element in bytes
  c10::SmallVector<Dimension, 3> given;   // in the tensor's order
  c10::SmallVector<Dimension, 3> nested;  // by stride, the largest first
  c10::SmallVector<int64_t, 3> reach;     // largest distance within the nested dimensions from this one on
};

// Whether two elements of a tensor share a byte.
bool overlaps_itself(const Addresses& a);

enum class Overlap { none, some, same };  // same: every element has the address of its counterpart

// Whether elements of two tensors share a byte. The answer is exact for equal sizes and strides, for instance of two
// slices of one matrix. Others count as overlapping if one starts before the other ends.
Overlap overlap(const Addresses& a, const Addresses& b);

}  // namespace oekd
