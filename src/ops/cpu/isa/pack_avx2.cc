// The packing kernels for avx2.
// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <type_traits>

#include "core/panels.h"
#include "ops/cpu/isa/decode.h"
#include "ops/cpu/pack.h"

#define HADAL_TABLE pack_avx2
#include "ops/cpu/isa/pack_kernel.inc.h"
