#include "cpu/ensemble_kd/ensemble_kd_labels.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "cpu/stable/memory.h"
#include "cpu/stable/parallel.h"

namespace oekd {
namespace {

constexpr int64_t PIECE = 1 << 16;  // probabilities that a thread checks at least

void count(Labels& labels, const Shape& shape, const float* class_weights) {
  const int64_t* target = labels.classes.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < shape.rows; ++row) {
    if (target[row] == labels.ignore_index) continue;
    OEKD_CHECK(target[row] >= 0 && target[row] < shape.classes, "target: expected labels in [0, ", shape.classes,
               ") or ignore_index ", labels.ignore_index, ", got ", target[row], " at row ", row);
    ++labels.counted;
    if (class_weights) labels.weight += class_weights[target[row]];
  }
  if (!class_weights) labels.weight = static_cast<double>(labels.counted);
}

// Raises ValueError for a row that is no distribution.
[[noreturn]] void refuse(const Tensor& target, const Shape& shape, int64_t row) {
  const Sizes strides = target.strides();
  const int64_t inner = target.dim() == 2 ? 1 : target.size(2), inner_stride = target.dim() == 2 ? 0 : strides[2];
  const int64_t offset = row / inner * strides[0] + row % inner * inner_stride;
  const Tensor exact = contiguous(view(target, {shape.classes}, {strides[1]}, offset), ScalarType::Double);
  const double* t = exact.const_data_ptr<double>();
  double sum = 0;
  for (int64_t c = 0; c < shape.classes; ++c) {
    sum += t[c];
    if (t[c] >= 0) continue;
    const std::string given = std::isnan(t[c]) ? "nan" : text(t[c]);
    throw std::invalid_argument(text("target: expected probabilities >= 0, got ", given, " at row ", row));
  }
  throw std::invalid_argument(
      text("target: expected probabilities that sum to 1 in each row, got ", sum, " at row ", row));
}

Labels classify(const Tensor& target, const Shape& shape, const Isa& isa) {
  const Scalar dtype = target.scalar_type() == ScalarType::Double ? Scalar::f64 : scalar_of("target", target);
  Labels labels{
      .classes = empty({shape.rows}, ScalarType::Long),
      .given = target,
      .probabilities = {shape.matrix(target), dtype},
      .spread = empty({shape.rows}, ScalarType::Byte),
      .ignore_index = std::numeric_limits<int64_t>::min(),
      .counted = shape.rows,
      .weight = static_cast<double>(shape.rows),
  };
  const LabelRows rows{shape.rows, shape.classes, shape.inner, labels.probabilities,
                       labels.classes.mutable_data_ptr<int64_t>(), labels.spread->mutable_data_ptr<uint8_t>()};
  parallel_for("ensemble_kd", shape.rows, std::max<int64_t>(1, PIECE / shape.classes),
               [&](int64_t begin, int64_t end) { isa.ensemble_kd_labels(rows, begin, end); });
  const uint8_t* kinds = rows.spread;
  const uint8_t* worst = std::max_element(kinds, kinds + shape.rows);
  if (worst == kinds + shape.rows || *worst == 0) labels.spread.reset();
  else if (*worst == 2) refuse(target, shape, worst - kinds);
  return labels;
}

}  // namespace

Labels labels_of(const Tensor& target, const Shape& shape, const float* class_weights, int64_t ignore_index,
                 const Isa& isa) {
  const ScalarType dtype = target.scalar_type();
  const bool probabilities = is_floating(dtype);
  OEKD_CHECK(probabilities || is_integral(dtype), "target: expected class indices or floating probabilities, got ",
             dtype);
  const Sizes expected = probabilities ? shape.sizes : Sizes(shape.by_row.data(), shape.by_row.size());
  OEKD_CHECK(target.sizes().equals(expected) && target.is_cpu(), "target: expected ", expected, " on the CPU, got ",
             target.sizes(), " on ", device_name(target));
  check_memory("target", target);
  if (probabilities) return classify(target, shape, isa);
  const Tensor classes = contiguous(target, ScalarType::Long);
  Labels labels{.classes = classes, .given = classes, .probabilities = {}, .spread = {}, .ignore_index = ignore_index,
                .counted = 0, .weight = 0};
  count(labels, shape, class_weights);
  return labels;
}

}  // namespace oekd
