// The softmax row kernels for portable.
// SPDX-License-Identifier: Apache-2.0
#define HADAL_TABLE softmax_portable
#include "ops/cpu/isa/softmax.inc.h"
