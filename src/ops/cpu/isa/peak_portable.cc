// The loops of ops/peak.h for portable.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/isa/dot4.h"
#include "ops/cpu/peak_loops.h"

#define HADAL_TABLE peak_portable
#define HADAL_PEAK_NAME "portable"
#include "ops/cpu/isa/peak_loops.inc.h"
