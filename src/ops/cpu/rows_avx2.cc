// Row kernels for processors with AVX2 and FMA.
// SPDX-License-Identifier: Apache-2.0
#define HADAL_ROWS_ISA avx2
#define HADAL_ROWS_BYTES 32
#include "ops/cpu/isa/rows.inc.h"
