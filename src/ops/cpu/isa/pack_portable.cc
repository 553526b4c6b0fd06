// The packing kernels for portable.
// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <type_traits>

#include "core/panels.h"
#include "ops/cpu/isa/decode.h"
#include "ops/cpu/pack.h"

#define HADAL_TABLE pack_portable
#include "ops/cpu/isa/pack_kernel.inc.h"
