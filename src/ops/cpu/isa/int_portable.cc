// The kernels of integer products for portable.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/int_product.h"
#include "ops/cpu/isa/dot4.h"

#define HADAL_INT_ROWS 2
#define HADAL_TABLE int_portable
#include "ops/cpu/isa/int_kernel.inc.h"
