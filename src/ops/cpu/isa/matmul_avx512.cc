// The register kernel of matmul for AVX-512: 12 rows of 2 vectors.
// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include <type_traits>

#include "ops/cpu/matmul.h"

#define HADAL_VECTOR_BYTES 64
#define HADAL_ROWS 12
#define HADAL_WIDTH 16
#define HADAL_TABLE matmul_avx512

namespace hadal::ops::cpu {
namespace {
inline __m512 multiply_add(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512d multiply_add(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
}  // namespace
}  // namespace hadal::ops::cpu

#include "ops/cpu/isa/matmul_kernel.inc.h"
