// Choice of the instruction set: each kernel is compiled once for each, see setup.py.
#pragma once

#include <string_view>
#include <vector>

#include "cpu/direct_conv/direct_conv.h"
#include "cpu/ensemble_kd/ensemble_kd.h"
#include "cpu/feature_kd/feature_kd.h"
#include "cpu/norm_relu/norm_relu.h"
#include "cpu/winograd/winograd.h"

namespace oekd {

struct Isa {
  const char* name;
  const KDKernel& ensemble_kd;
  const KDKernel& ensemble_kd_lanes;
  void (*ensemble_kd_labels)(const LabelRows&, int64_t begin, int64_t end);
  const NormReLUKernel &norm_relu_fp32, &norm_relu_bf16, &norm_planes_fp32, &norm_planes_bf16;
  const ConvKernel& direct_conv;
  const WinogradKernel& winograd;
  const FeatureKernel &feature_kd_fp32, &feature_kd_bf16;
};

// Instruction sets that were built and that this processor supports, widest first.
const std::vector<Isa>& available_isas();

// Returns an element of available_isas(). "auto" chooses the widest. An unknown or unsupported name raises ValueError.
const Isa& choose_isa(std::string_view name);

}  // namespace oekd
