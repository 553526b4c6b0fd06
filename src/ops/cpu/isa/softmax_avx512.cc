// The softmax row kernels for avx512.
// SPDX-License-Identifier: Apache-2.0
#define HADAL_TABLE softmax_avx512
#include "ops/cpu/isa/softmax.inc.h"
