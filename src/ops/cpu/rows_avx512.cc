// Row kernels for processors with AVX-512 F, BW, VL and DQ.
// SPDX-License-Identifier: Apache-2.0
#define HADAL_ROWS_ISA avx512
#define HADAL_ROWS_BYTES 64
#include "ops/cpu/isa/rows.inc.h"
