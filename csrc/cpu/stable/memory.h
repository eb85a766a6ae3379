// Where the elements of a CPU tensor are: checks before a kernel reads or writes them through pointers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/stable/tensor.h"

namespace oekd {

// Raises ValueError if the storage of `t` does not hold all of its elements: it may have been resized, or have no
// memory, like that of a FakeTensor.
void check_memory(const char* name, const Tensor& t);

// Raises ValueError if `map` is not a float32 tensor of four dimensions on the CPU that passes check_memory.
void check_map(const char* name, const Tensor& map);

// A dimension of more than one element; the stride is in bytes.
struct Dimension {
  int64_t size, stride;
  bool operator==(const Dimension&) const = default;
};

// At most three numbers or dimensions, without an allocation.
template <class T>
class Few {
 public:
  void push_back(const T& value) { values_.at(size_++) = value; }
  size_t size() const { return size_; }
  const T& operator[](size_t i) const { return values_[i]; }
  T& operator[](size_t i) { return values_[i]; }
  const T& front() const { return values_[0]; }
  const T& back() const { return values_[size_ - 1]; }
  T* begin() { return values_.data(); }
  T* end() { return values_.data() + size_; }
  const T* data() const { return values_.data(); }
  bool operator==(const Few&) const = default;

 private:
  std::array<T, 3> values_{};
  size_t size_ = 0;
};

// The addresses of a tensor's elements.
struct Addresses {
  // `t` passes check_memory and has at most three dimensions. Its data must not move afterwards (copy-on-write).
  explicit Addresses(const Tensor& t);

  uintptr_t begin, end;   // equal if there are no elements
  int64_t element;        // size of an element in bytes
  Few<Dimension> given;   // in the tensor's order
  Few<Dimension> nested;  // by stride, the largest first
  Few<int64_t> reach;     // largest distance within the nested dimensions from this one on
};

// Whether two elements of a tensor share a byte.
bool overlaps_itself(const Addresses& a);

enum class Overlap { none, some, same };  // same: every element has the address of its counterpart

// Whether elements of two tensors share a byte. The answer is exact for equal sizes and strides, for instance of two
// slices of one matrix. Others count as overlapping if one starts before the other ends.
Overlap overlap(const Addresses& a, const Addresses& b);

}  // namespace oekd
