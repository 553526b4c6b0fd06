// Arguments of matrix products with few rows on the left, where reading the weight is the limit.
//
//   M rows (tokens)   N output width   K inner width   B batches (heads, or positions of pages)
//
// c = (or +=) a w^T (nt) or a w (nn): a bf16, w bf16, f32 or e4m3 with block scales, sums in f32, c
// bf16 or f32. An element's order of summation is fixed by K alone, so a row's result does not
// depend on the rows beside it; it is another order than bf16_gemm's. Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace hadal::cuda {

enum class GemvWeight : uint8_t { kBF16, kF32, kE4M3 };

struct GemvConfig {
  static constexpr int kMaxRows = 8;       // of a at once; more are done in turns
  static constexpr int kWarps = 4;         // of a block (nt)
  static constexpr int kColumnWarps = 16;  // of a block (nn)
  static constexpr int kOutputs = 2;       // of a warp (nt)
  static constexpr int kUnroll = 4;        // 16-byte loads of a row of w in flight
};

struct GemvArgs {
  GemvWeight type;
  const void* a;  // [M, K] bf16
  int64_t a_row_stride, a_batch_stride;
  const void* w;  // [N, K] (nt) or [K, N] (nn)
  int64_t w_row_stride, w_batch_stride;
  const float* scale;  // e4m3: scale of block (row / 128, column / 128) of w; else null
  int64_t scale_row_stride, scale_batch_stride;
  int scale_row, scale_batch_rows;  // row of the scaled matrix that w begins at, and a batch's step
  void* c;                          // [M, N]
  int64_t c_row_stride, c_batch_stride;
  int c_is_f32, accumulate;
  int m, n, k, batches;

  // Experts' rows (ops/pages.h) where counts is given: batches counts positions, m is ignored, and
  // the batch stride of w and its scales is from one expert to the next.
  const int *counts, *page_begin, *a_page, *c_page;
  int num_experts, a_pages, c_pages;
};

// REQUIRES: 16-byte aligned rows of a and w; K a multiple of 16 (nt); N of 8, w bf16 (nn).
void gemv_nt(const GemvArgs& args, cudaStream_t stream);
void gemv_nn(const GemvArgs& args, cudaStream_t stream);

}  // namespace hadal::cuda
