// Choice of the instruction set by cpuid and HADAL_ISA.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/isa.h"

#include "core/check.h"
#include "core/env.h"

namespace hadal::ops::cpu {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  HADAL_UNREACHABLE("unknown instruction set");
}

bool isa_available(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
  HADAL_UNREACHABLE("unknown instruction set");
#else
  return isa == Isa::kPortable;
#endif
}

namespace {

Isa choose() {
  const std::string wanted = env::isa();
  if (wanted.empty())
    return isa_available(Isa::kAvx512) ? Isa::kAvx512
           : isa_available(Isa::kAvx2) ? Isa::kAvx2
                                       : Isa::kPortable;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (wanted != isa_name(isa)) continue;
    HADAL_CHECK(isa_available(isa), "HADAL_ISA is ", wanted,
                ", which this processor lacks; unset it or use portable");
    return isa;
  }
  HADAL_UNREACHABLE("env::isa() checks its values");
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace hadal::ops::cpu
