// The kernels of integer products for avx512.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/int_product.h"
#include "ops/cpu/isa/dot4.h"

#define HADAL_INT_ROWS 8
#define HADAL_TABLE int_avx512
#include "ops/cpu/isa/int_kernel.inc.h"
