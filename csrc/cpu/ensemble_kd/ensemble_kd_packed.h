// Blocks of rows whose classes are apart in memory, copied to scratch with their classes side by side.
#pragma once

#include "cpu/ensemble_kd/ensemble_kd_layout.h"

namespace oekd::OEKD_ISA {
namespace {

// Copies a block of rows at a time, one cache line of neighbouring rows for each class, so that each line is read once.
// The gradients of a student whose logits are copied replace them.
class PackedRows {
 public:
  // Rows of a block; 1 if the classes of all tensors are side by side, and nothing needs a copy.
  static int64_t rows_of_block(const KDProblem& p) {
    bool apart = false;
    for_each_source(p, [&](const Matrix& m, int64_t) { apart |= is_apart(p, m); });
    return apart ? LINE / size_of(p.dtype) : 1;
  }

  static int64_t bytes(const KDProblem& p) {
    if (rows_of_block(p) == 1) return 0;
    int64_t bytes = tables_bytes(p);
    for_each_source(p, [&](const Matrix& m, int64_t size) { bytes += is_apart(p, m) ? buffer_bytes(p, size) : 0; });
    return bytes;
  }

  PackedRows(const KDProblem& problem, char* scratch)
      : given_(problem), block_(problem), rows_(rows_of_block(problem)), next_(scratch + tables_bytes(problem)) {
    auto* table = reinterpret_cast<Matrix*>(scratch);
    logits_ = table;
    grads_ = table + problem.students;
    teachers_ = reinterpret_cast<Source*>(table + 2 * problem.students);
    block_.logits = logits_;
    block_.teachers = teachers_;
    if (problem.grads) block_.grads = grads_;
    if (problem.probabilities) block_.probabilities = &probabilities_;
  }

  // Calls use(problem, first, last) for blocks of rows; the problem's matrices hold the copies.
  template <class Use>
  void for_each_block(int64_t begin, int64_t end, const Use& use) {
    char* const buffers = next_;
    for (int64_t first = begin; first < end; first += rows_) {
      const int64_t last = first + rows_ < end ? first + rows_ : end;
      next_ = buffers;
      gather(first, last);
      use(block_, first, last);
      scatter(first, last);
    }
  }

 private:
  const KDProblem& given_;
  KDProblem block_;
  int64_t rows_;
  char* next_;
  Matrix *logits_, *grads_;
  Source* teachers_;
  Source probabilities_;

  static bool is_apart(const KDProblem& p, const Matrix& m) { return m.class_stride != 1 && p.classes > 1; }

  // An odd number of cache lines, so that the rows of a block do not share cache sets.
  static int64_t pitch(const KDProblem& p, int64_t size) {
    return ((p.classes * size + LINE - 1) / LINE | 1) * LINE / size;
  }
  static int64_t buffer_bytes(const KDProblem& p, int64_t size) {
    return LINE / size_of(p.dtype) * pitch(p, size) * size;
  }
  static int64_t tables_bytes(const KDProblem& p) {
    return round_up(2 * p.students * int64_t{sizeof(Matrix)} + p.num_teachers * int64_t{sizeof(Source)}, LINE);
  }

  // Calls use(matrix, size of an element) for the matrices that need a buffer of their own if their classes are apart.
  template <class Use>
  static void for_each_source(const KDProblem& p, const Use& use) {
    for (int64_t j = 0; j < p.students; ++j) {
      use(p.logits[j], size_of(p.dtype));
      if (p.grads && !is_apart(p, p.logits[j])) use(p.grads[j], size_of(p.dtype));
    }
    for (int64_t k = 0; k < p.num_teachers; ++k) use(p.teachers[k].matrix, size_of(p.teachers[k].dtype));
    if (p.probabilities) use(p.probabilities->matrix, size_of(p.probabilities->dtype));
  }

  // Calls copy(element of the tensor, element of the block) for all elements of the rows.
  template <class T, class Copy>
  void for_each_element(const Matrix& from, const Matrix& to, int64_t first, int64_t last, const Copy& copy) const {
    T *src[LINE], *dst[LINE];
    for (int64_t row = first; row < last; ++row) {
      src[row - first] = at<T>(from, row);
      dst[row - first] = at<T>(to, row);
    }
    for (int64_t c = 0; c < given_.classes; ++c) {
      for (int64_t r = 0; r < last - first; ++r) copy(src[r][c * from.class_stride], dst[r][c]);
    }
  }
  template <class T>
  T* at(const Matrix& m, int64_t row) const {
    return static_cast<T*>(m.data) + row / given_.inner * m.outer_stride + row % given_.inner * m.inner_stride;
  }

  // Takes a buffer for rows `first` and those after it.
  Matrix buffer(Scalar dtype, int64_t first) {
    const int64_t size = size_of(dtype), pitch_ = pitch(given_, size);
    // The address that row 0 would have.
    const auto origin = reinterpret_cast<uintptr_t>(next_) - static_cast<uintptr_t>(first * pitch_ * size);
    next_ += buffer_bytes(given_, size);
    return {reinterpret_cast<void*>(origin), given_.inner * pitch_, 1, pitch_};
  }

  Matrix packed(const Matrix& m, Scalar dtype, int64_t first, int64_t last) {
    if (!is_apart(given_, m)) return m;
    const Matrix copy = buffer(dtype, first);
    with_dtype(dtype, [&]<class T>(T) {
      for_each_element<T>(m, copy, first, last, [](const T& from, T& to) { to = from; });
    });
    return copy;
  }

  void gather(int64_t first, int64_t last) {
    for (int64_t j = 0; j < given_.students; ++j) {
      logits_[j] = packed(given_.logits[j], given_.dtype, first, last);
      if (!given_.grads) continue;
      const bool apart = is_apart(given_, given_.grads[j]), reused = is_apart(given_, given_.logits[j]);
      grads_[j] = !apart ? given_.grads[j] : reused ? logits_[j] : buffer(given_.dtype, first);
      if (apart) block_.stream_stores = false;
    }
    for (int64_t k = 0; k < given_.num_teachers; ++k) {
      const Source& teacher = given_.teachers[k];
      teachers_[k] = {packed(teacher.matrix, teacher.dtype, first, last), teacher.dtype};
    }
    if (const Source* labels = given_.probabilities) {
      probabilities_ = {packed(labels->matrix, labels->dtype, first, last), labels->dtype};
    }
  }

  void scatter(int64_t first, int64_t last) const {
    for (int64_t j = 0; given_.grads && j < given_.students; ++j) {
      if (!is_apart(given_, given_.grads[j])) continue;
      with_dtype(given_.dtype, [&]<class T>(T) {
        for_each_element<T>(given_.grads[j], grads_[j], first, last, [](T& to, const T& from) { to = from; });
      });
    }
  }
};

}  // namespace
}  // namespace oekd::OEKD_ISA
