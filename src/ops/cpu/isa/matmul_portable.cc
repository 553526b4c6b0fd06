// The register kernel of matmul for any processor: 16-byte vectors, multiply and add rounded apart.
// SPDX-License-Identifier: Apache-2.0
#include <type_traits>

#include "ops/cpu/matmul.h"

#define HADAL_VECTOR_BYTES 16
#define HADAL_ROWS 4
#define HADAL_WIDTH 4
#define HADAL_TABLE matmul_portable

namespace hadal::ops::cpu {
namespace {
template <class V>
V multiply_add(V a, V b, V c) {
  return a * b + c;
}
}  // namespace
}  // namespace hadal::ops::cpu

#include "ops/cpu/isa/matmul_kernel.inc.h"
