// The loops of ops/peak.h for avx2.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/isa/dot4.h"
#include "ops/cpu/peak_loops.h"

#define HADAL_TABLE peak_avx2
#define HADAL_PEAK_NAME "avx2"
#include "ops/cpu/isa/peak_loops.inc.h"
