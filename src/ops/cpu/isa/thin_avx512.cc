// The kernels of thin products for AVX-512.
// SPDX-License-Identifier: Apache-2.0
#include <type_traits>

#include "ops/cpu/isa/decode.h"
#include "ops/cpu/thin.h"

namespace hadal::ops::cpu {
namespace {
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
}  // namespace
}  // namespace hadal::ops::cpu

#define HADAL_TABLE thin_avx512
#include "ops/cpu/isa/thin_kernel.inc.h"
