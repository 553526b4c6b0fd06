// Row kernels for any processor (on x86-64: SSE2).
// SPDX-License-Identifier: Apache-2.0
#define HADAL_ROWS_ISA portable
#define HADAL_ROWS_BYTES 16
#include "ops/cpu/isa/rows.inc.h"
