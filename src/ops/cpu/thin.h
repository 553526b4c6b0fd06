// Kernels of thin products: a few rows times a stored weight, with no panel in between.
//
//   M rows (at most kThinRows)   N columns of the result   K inner width
//
// Decode reads every weight for a row or two, so it runs at the rate of memory or not at all: the
// weight is read in the order it lies, decoded and transposed in registers, and the chains over k
// stay there too. The chains are those of the register kernel of matmul, bit for bit.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/panels.h"
#include "ops/cpu/matmul.h"
#include "ops/cpu/pack.h"

namespace hadal::ops::cpu {

inline constexpr int64_t kThinRows = 8;   // the most of any kernels
inline constexpr int64_t kThinCols = 32;  // columns of a call of `rows`; of any call, a multiple of
                                          // 16 is written
inline constexpr int64_t kTallRows = 16, kTallDepth = 128;  // rows and k of a call of `tall_...`

// c[m * ldc + n] (+)= sum over k of a[m * lda + k] w[n, k], for n < N.
struct ThinProduct {
  int64_t M, N, K;
  const float* a;
  int64_t lda;
  DType dtype;            // of the weight: f32, bf16 or e4m3
  const std::byte* data;  // element (n, k) = (0, 0)
  int64_t stride_bytes;   // from one stored row to the next
  // e4m3: scale of a stored element is scale[row / 128 * scale_stride + column / 128], where
  // element (0, 0) is at (first_row, first_col).
  const float* scale;
  int64_t scale_stride, first_row, first_col;
  float* c;
  int64_t ldc;
  Start start;
  const std::byte* ahead;  // what will be read next, as much as this product reads; or null
};

// c[m * ldc + n] (+)= sum over k of a[m, k] w[n, k]: sums stay in registers through all k.
struct TallProduct {
  int64_t M, N, K;  // M at most kTallRows, N a multiple of 16
  const float* a;
  DType dtype;            // of w: f32 or bf16
  const std::byte* data;  // w[n, k] at data + k * stride_bytes
  int64_t stride_bytes;
  float* c;
  int64_t ldc;
  Start start;
  // What will be read next: asked for at ahead + k * ahead_stride, and from each 16 n on at as many
  // elements further; or null.
  const std::byte* ahead = nullptr;
  int64_t ahead_stride = 0;
};

struct ThinKernels {
  int64_t most_rows;  // M: as many sums as registers hold
  // Stored rows are n: w[n, k] at data + n * stride_bytes. e4m3: in one row of blocks, first_col a
  // multiple of 128.
  void (*rows)(const ThinProduct& p);
  // Stored rows are k: w[n, k] at data + k * stride_bytes. e4m3: first_col a multiple of 16.
  void (*columns)(const ThinProduct& p);
  // The same for more rows: a[m, k] at a + m * kTallDepth + k, K at most kTallDepth; or at
  // a + k * kTallRows + m.
  void (*tall_rows)(const TallProduct& p);
  void (*tall_panel)(const TallProduct& p);
  // Panels (core/panels.h): w[n, k] of the panel at data + n / 32 * stride_bytes. bf16, or e4m3
  // without NaN, scales below 128, first_row a multiple of 32 and first_col 0. N is a multiple of
  // 32, K of 128.
  void (*panels)(const ThinProduct& p);
};
extern const ThinKernels thin_portable, thin_avx2, thin_avx512;
const ThinKernels& thin_kernels();  // of active_isa()

}  // namespace hadal::ops::cpu
