// The choice of the row kernels' build: by processor, or by HADAL_ISA.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/isa/row_kernels.h"

#include <string>

#include "core/check.h"
#include "core/env.h"

namespace hadal::ops::cpu {
namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

const RowKernels& row_kernels_of(const char* isa) {
  const std::string name = isa;
  if (name.empty()) {
    return has_avx512() ? avx512::table() : has_avx2() ? avx2::table() : portable::table();
  }
  if (name == "portable") return portable::table();
  if (name == "avx2") {
    HADAL_CHECK(has_avx2(),
                "HADAL_ISA=avx2, but this processor lacks AVX2 or FMA; unset HADAL_ISA");
    return avx2::table();
  }
  if (name == "avx512") {
    HADAL_CHECK(has_avx512(),
                "HADAL_ISA=avx512, but this processor lacks AVX-512 F, BW, VL or DQ; "
                "unset HADAL_ISA");
    return avx512::table();
  }
  HADAL_FAIL("HADAL_ISA is '", name, "'; use portable, avx2 or avx512, or unset it");
}

const RowKernels& row_kernels() {
  static const RowKernels& chosen = row_kernels_of(env::isa().c_str());
  return chosen;
}

}  // namespace hadal::ops::cpu
