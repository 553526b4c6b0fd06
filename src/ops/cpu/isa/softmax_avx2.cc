// The softmax row kernels for avx2.
// SPDX-License-Identifier: Apache-2.0
#define HADAL_TABLE softmax_avx2
#include "ops/cpu/isa/softmax.inc.h"
