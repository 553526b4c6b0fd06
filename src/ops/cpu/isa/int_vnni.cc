// The kernels of integer products for vnni.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/int_product.h"
#include "ops/cpu/isa/dot4.h"

#define HADAL_INT_ROWS 12
#define HADAL_TABLE int_vnni
#include "ops/cpu/isa/int_kernel.inc.h"
