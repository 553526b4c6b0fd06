// The register kernel of matmul for AVX2 with FMA: 6 rows of 2 vectors.
// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include <type_traits>

#include "ops/cpu/matmul.h"

#define HADAL_VECTOR_BYTES 32
#define HADAL_ROWS 6
#define HADAL_WIDTH 8
#define HADAL_TABLE matmul_avx2

namespace hadal::ops::cpu {
namespace {
inline __m256 multiply_add(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
inline __m256d multiply_add(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
}  // namespace
}  // namespace hadal::ops::cpu

#include "ops/cpu/isa/matmul_kernel.inc.h"
