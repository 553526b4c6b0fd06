// The loops of ops/peak.h for avx512.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/isa/dot4.h"
#include "ops/cpu/peak_loops.h"

#define HADAL_TABLE peak_avx512
#define HADAL_PEAK_NAME "avx512"
#include "ops/cpu/isa/peak_loops.inc.h"
