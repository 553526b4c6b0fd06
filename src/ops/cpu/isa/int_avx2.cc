// The kernels of integer products for avx2.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/int_product.h"
#include "ops/cpu/isa/dot4.h"

#define HADAL_INT_ROWS 4
#define HADAL_INT_WIDE_ROWS 6
#define HADAL_TABLE int_avx2
#include "ops/cpu/isa/int_kernel.inc.h"
