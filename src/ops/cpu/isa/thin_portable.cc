// The kernels of thin products for any processor: multiply and add rounded apart.
// SPDX-License-Identifier: Apache-2.0
#include <type_traits>

#include "ops/cpu/isa/decode.h"
#include "ops/cpu/thin.h"

namespace hadal::ops::cpu {
namespace {
inline Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
}  // namespace
}  // namespace hadal::ops::cpu

#define HADAL_TABLE thin_portable
#include "ops/cpu/isa/thin_kernel.inc.h"
