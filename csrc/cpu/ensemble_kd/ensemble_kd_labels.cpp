#include "cpu/ensemble_kd/ensemble_kd_labels.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "cpu/memory.h"

namespace oekd {
namespace {

using at::Tensor;

constexpr int64_t PIECE = 1 << 16;  // probabilities that a thread checks at least

void count(Labels& labels, const Shape& shape, const float* class_weights) {
  const int64_t* target = labels.classes.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < shape.rows; ++row) {
    if (target[row] == labels.ignore_index) continue;
    TORCH_CHECK_VALUE(target[row] >= 0 && target[row] < shape.classes, "target: expected labels in [0, ",
                      shape.classes, ") or ignore_index ", labels.ignore_index, ", got ", target[row], " at row ", row);
    ++labels.counted;
    if (class_weights) labels.weight += class_weights[target[row]];
  }
  if (!class_weights) labels.weight = static_cast<double>(labels.counted);
}

// Raises ValueError for a row that is no distribution.
[[noreturn]] void refuse(const Tensor& target, int64_t row) {
  const Tensor numbers = target.dim() == 2 ? target.select(0, row)
                                           : target.select(0, row / target.size(2)).select(1, row % target.size(2));
  const Tensor exact = numbers.to(at::kDouble).contiguous();
  const double* t = exact.const_data_ptr<double>();
  for (int64_t c = 0; c < exact.numel(); ++c) {
    if (t[c] >= 0) continue;
    const std::string given = std::isnan(t[c]) ? "nan" : c10::str(t[c]);
    TORCH_CHECK_VALUE(false, "target: expected probabilities >= 0, got ", given, " at row ", row);
  }
  TORCH_CHECK_VALUE(false, "target: expected probabilities that sum to 1 in each row, got ",
                    exact.sum().item<double>(), " at row ", row);
}

void classify(Labels& labels, const Tensor& target, const Shape& shape, const Isa& isa) {
  labels.classes = at::empty({shape.rows}, at::kLong);
  labels.spread = at::empty({shape.rows}, at::kByte);
  labels.ignore_index = std::numeric_limits<int64_t>::min();
  labels.counted = shape.rows;
  labels.weight = static_cast<double>(shape.rows);
  const LabelRows rows{shape.rows, shape.classes, shape.inner, labels.probabilities,
                       labels.classes.mutable_data_ptr<int64_t>(), labels.spread.mutable_data_ptr<uint8_t>()};
  auto work = [&](int64_t begin, int64_t end) { isa.ensemble_kd_labels(rows, begin, end); };
  using Work = decltype(work);
  TORCH_CHECK(torch_parallel_for(0, shape.rows, std::max<int64_t>(1, PIECE / shape.classes),
                                 [](int64_t begin, int64_t end, void* w) { (*static_cast<Work*>(w))(begin, end); },
                                 &work) == 0,
              "ensemble_kd: a worker thread failed");
  const uint8_t* kinds = rows.spread;
  const uint8_t* worst = std::max_element(kinds, kinds + shape.rows);
  if (worst == kinds + shape.rows || *worst == 0) labels.spread.reset();
  else if (*worst == 2) refuse(target, worst - kinds);
}

}  // namespace

Labels labels_of(const Tensor& target, const Shape& shape, const float* class_weights, int64_t ignore_index,
                 const Isa& isa) {
  const bool probabilities = target.is_floating_point();
  TORCH_CHECK_TYPE(probabilities || c10::isIntegralType(target.scalar_type(), /*includeBool=*/false),
                   "target: expected class indices or floating probabilities, got ", target.scalar_type());
  const at::IntArrayRef expected = probabilities ? shape.sizes : at::IntArrayRef(shape.by_row);
  TORCH_CHECK_VALUE(target.sizes() == expected && target.device().is_cpu(), "target: expected ", expected,
                    " on the CPU, got ", target.sizes(), " on ", target.device());
  check_memory("target", target);
  Labels labels{};
  if (!probabilities) {
    // Most labels are used as they are; the calls below would cost time in small problems.
    const bool as_given = target.scalar_type() == at::kLong && target.is_contiguous();
    labels.classes = labels.given = as_given ? target : target.to(at::kLong).contiguous();
    labels.ignore_index = ignore_index;
    count(labels, shape, class_weights);
    return labels;
  }
  const bool wide = target.scalar_type() == at::kDouble;
  labels.given = target;
  labels.probabilities = {shape.matrix(target), wide ? Scalar::f64 : scalar_of("target", target)};
  classify(labels, target, shape, isa);
  return labels;
}

}  // namespace oekd
