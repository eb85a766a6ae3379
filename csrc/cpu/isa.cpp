#include "cpu/isa.h"

#include <string>

#include "cpu/stable/check.h"

namespace oekd {

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> found;
#ifdef OEKD_HAVE_X86_COPIES
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      const bool converts = __builtin_cpu_supports("avx512bf16");
      found.push_back({"avx512", avx512::ensemble_kd_kernel,
                       avx512::ensemble_kd_lanes_kernel, avx512::ensemble_kd_labels,
                       avx512::norm_relu_fp32, converts ? avx512bf16::norm_relu_bf16 : avx512::norm_relu_bf16,
                       avx512::norm_planes_fp32, converts ? avx512bf16::norm_planes_bf16 : avx512::norm_planes_bf16,
                       avx512::direct_conv_kernel, avx512::winograd_kernel,
                       avx512::feature_kd_fp32, avx512::feature_kd_bf16});
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
      found.push_back({"avx2", avx2::ensemble_kd_kernel,
                       avx2::ensemble_kd_lanes_kernel, avx2::ensemble_kd_labels,
                       avx2::norm_relu_fp32, avx2::norm_relu_bf16, avx2::norm_planes_fp32,
                       avx2::norm_planes_bf16, avx2::direct_conv_kernel, avx2::winograd_kernel,
                       avx2::feature_kd_fp32, avx2::feature_kd_bf16});
    }
#endif
    found.push_back({"baseline", baseline::ensemble_kd_kernel, baseline::ensemble_kd_lanes_kernel,
                     baseline::ensemble_kd_labels, baseline::norm_relu_fp32, baseline::norm_relu_bf16,
                     baseline::norm_planes_fp32, baseline::norm_planes_bf16, baseline::direct_conv_kernel,
                     baseline::winograd_kernel, baseline::feature_kd_fp32, baseline::feature_kd_bf16});
    return found;
  }();
  return isas;
}

const Isa& choose_isa(std::string_view name) {
  if (name == "auto") return available_isas().front();
  for (const Isa& isa : available_isas()) {
    if (name == isa.name) return isa;
  }
  std::string names;
  for (const Isa& isa : available_isas()) names.append(", ").append(isa.name);
  throw std::invalid_argument(text("isa: expected one of auto", names, " on this processor, got ", name));
}

}  // namespace oekd
