// The loops of ops/peak.h for each instruction set.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace hadal::ops::cpu {

struct PeakLoops {
  const char* name;
  double (*fma)(int64_t rounds);
  double (*int_dot)(int64_t rounds);
  double (*read)(const std::byte* from, int64_t bytes);
};
extern const PeakLoops peak_portable, peak_avx2, peak_avx512, peak_vnni;

}  // namespace hadal::ops::cpu
