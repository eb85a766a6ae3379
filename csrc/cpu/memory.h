// Where the elements of a CPU tensor are: checks before a kernel reads or writes them through pointers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace oekd {

// Raises ValueError if the storage of `t` does not hold all of its elements: it may have been resized, or have no
// memory, like that of a FakeTensor.
void check_memory(const char* name, const at::Tensor& t);

// The addresses of a tensor's elements. Sizes and strides are in bytes, and strides of dimensions of size 1 are 0.
struct Addresses {
  // `t` passes check_memory and has at most two dimensions. Its data must not move afterwards (copy-on-write).
  explicit Addresses(const at::Tensor& t);

  uintptr_t begin, end;  // equal if there are no elements
  int64_t element;       // size of an element
  // The dimension with the larger stride is the outer one.
  int64_t outer_size = 1, outer_stride = 0, inner_size = 1, inner_stride = 0;
};

// Whether two elements of a tensor share a byte.
bool overlaps_itself(const Addresses& a);

enum class Overlap { none, some, same };  // same: every element has the address of its counterpart

// Whether elements of two tensors share a byte. The answer is exact for equal sizes and strides, for instance of two
// slices of one matrix. Others count as overlapping if one starts before the other ends.
Overlap overlap(const Addresses& a, const Addresses& b);

}  // namespace oekd
