// The instruction set that CPU kernels use, chosen once per process.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace hadal::ops::cpu {

enum class Isa : uint8_t { kPortable, kAvx2, kAvx512 };

// What this processor runs: HADAL_ISA if set (an Error if the processor lacks it), else the best.
Isa active_isa();
const char* isa_name(Isa isa);
bool isa_available(Isa isa);

}  // namespace hadal::ops::cpu
