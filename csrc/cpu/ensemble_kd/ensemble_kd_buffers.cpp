#include "cpu/ensemble_kd/ensemble_kd_buffers.h"

#include "cpu/stable/memory.h"

namespace oekd {

void check_buffers(const std::vector<Tensor>& out, const OptionalTensor& weights_grad,
                   const std::vector<Tensor>& logits, const std::vector<NamedTensor>& others) {
  std::vector<Addresses> written, read, beside;
  written.reserve(out.size());
  read.reserve(logits.size());
  beside.reserve(others.size());
  for (const Tensor& buffer : out) written.emplace_back(buffer);
  for (const Tensor& z : logits) read.emplace_back(z);
  for (const NamedTensor& other : others) beside.emplace_back(other.tensor);
  for (size_t i = 0; i < out.size(); ++i) {
    OEKD_CHECK(!overlaps_itself(written[i]), "out: expected no two elements at the same address, got strides ",
               out[i].strides());
    for (size_t j = 0; j < i; ++j) {
      OEKD_CHECK(overlap(written[i], written[j]) == Overlap::none,
                 "out: expected separate memory for each buffer, got buffers ", j, " and ", i, " that overlap");
    }
    for (size_t j = 0; j < read.size(); ++j) {
      const Overlap found = overlap(written[i], read[j]);
      OEKD_CHECK(found == Overlap::none || (found == Overlap::same && i == j), "out: expected buffer ", i,
                 " outside the memory of logits ", j,
                 ", or exactly their memory if the numbers are equal, got memory that overlaps");
    }
    for (size_t j = 0; j < beside.size(); ++j) {
      OEKD_CHECK(overlap(written[i], beside[j]) == Overlap::none, "out: expected buffer ", i, " outside the memory of ",
                 others[j].name, ", got memory that overlaps");
    }
  }
  if (!weights_grad) return;
  const Addresses last(*weights_grad);
  OEKD_CHECK(!overlaps_itself(last), "weights_grad: expected no two elements at the same address, got strides ",
             weights_grad->strides());
  for (size_t i = 0; i < written.size(); ++i) {
    OEKD_CHECK(overlap(last, written[i]) == Overlap::none,
               "weights_grad: expected memory outside of out, got memory that overlaps buffer ", i);
  }
}

}  // namespace oekd
