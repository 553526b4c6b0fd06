// The loops of ops/peak.h for vnni.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/isa/dot4.h"
#include "ops/cpu/peak_loops.h"

#define HADAL_TABLE peak_vnni
#define HADAL_PEAK_NAME "avx512 vnni"
#include "ops/cpu/isa/peak_loops.inc.h"
