// The loops of this processor.
// SPDX-License-Identifier: Apache-2.0
#include "ops/peak.h"

#include "ops/cpu/isa.h"
#include "ops/cpu/peak_loops.h"

namespace hadal::ops::peak {
namespace {

const cpu::PeakLoops& loops() {
#if defined(__x86_64__)
  static const cpu::Isa isa = cpu::active_isa();
  if (isa == cpu::Isa::kAvx512)
    return __builtin_cpu_supports("avx512vnni") ? cpu::peak_vnni : cpu::peak_avx512;
  if (isa == cpu::Isa::kAvx2) return cpu::peak_avx2;
#endif
  return cpu::peak_portable;
}

}  // namespace

double fma_loop(int64_t rounds) { return loops().fma(rounds); }
double int_dot_loop(int64_t rounds) { return loops().int_dot(rounds); }
double read_loop(const std::byte* from, int64_t bytes) { return loops().read(from, bytes); }
const char* isa_name() { return loops().name; }

}  // namespace hadal::ops::peak
