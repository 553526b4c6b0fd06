// Shapes and arguments of the block-scaled FP8 matrix product on Hopper.
//
//   E experts   P pages of 128 rows   N output width   K inner width
//
// c[row, n] = sum over k of a[row, k] scale_a[k / 128, row] w[e, n, k] scale_w[e, n / 128, k / 128]
// for the rows of expert e. The matrix unit sums 128 of K; those partial sums are scaled and added
// in f32 registers (report, 3.3.2). One K order whatever the rows: a row's result depends on
// nothing else in the call. Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace hadal::cuda {

struct Fp8GemmConfig {
  static constexpr int kPage = 128;   // rows of a page
  static constexpr int kRows = 256;   // rows of a tile: two pages, one for each matrix warpgroup
  static constexpr int kCols = 128;   // columns of a tile
  static constexpr int kDepth = 128;  // K of a stage, and of one partial sum
  static constexpr int kStages = 4;
  static constexpr int kCluster = 2;    // blocks that share a tile's rows
  static constexpr int kGroup = 8;      // row tiles whose columns are walked together, for the L2
  static constexpr int kThreads = 384;  // a copy warpgroup and two matrix warpgroups

  static constexpr int kBytesA = kRows * kDepth;
  static constexpr int kBytesW = kCols * kDepth;
  static constexpr int kBytesScale = kRows * 4;
  static constexpr int kBytesOut = 8 * 16 * 128;  // 16 rows x 64 columns of bf16 for each warp
  static constexpr int kSharedBytes =
      1024 + kStages * (kBytesA + kBytesW + kBytesScale) + kBytesOut + 2 * kStages * 8;
};

struct Fp8GemmArgs {
  const void* a;  // [slab_rows, K] e4m3: whole pages, or the rows of one matrix
  int64_t slab_rows, a_row_stride;
  const float* scale_a;  // [ceil(K/128), scale_stride] f32, a column for every row of whole pages
  int64_t scale_stride;  // a multiple of 4
  const void* w;         // [E, N, K] e4m3
  int64_t w_row_stride, w_batch_stride;
  const float* scale_w;  // [E, ceil(N/128), ceil(K/128)] f32
  int64_t scale_w_row_stride, scale_w_batch_stride;
  void* c;  // rows of N elements, in pages or one after the other
  int64_t c_row_stride, c_page_stride;
  int c_is_f32;  // else bf16
  int accumulate;

  // Experts' rows, as in ops/pages.h; device memory. Null: one matrix of `rows` rows.
  const int* counts;           // [E] rows of each expert
  const int* page_begin;       // [E+1] first page position of each expert
  const int *a_page, *c_page;  // [positions] page of a position; null: position i is page i
  int places;                  // positions that both lists have
  int a_pages, c_pages;
  int rows;
  int num_experts, n, k;
  int num_sms;     // SMs this launch may use
  int short_sums;  // 14 bits of the sum after every partial sum (ops/fp8_format.h)

  __host__ __device__ int k_blocks() const { return (k + 127) / 128; }
};

// REQUIRES: a and w aligned to 16 bytes, their strides multiples of 16; c aligned to 16 bytes; N
// and the strides of c even. Rows past an expert's count are not written. The launch may overlap
// the end of the kernel before, whose results it waits for. One expert in a slab of one page takes
// thin.cuh where it can, everything else kernel.cuh; both give the same bits.
void fp8_gemm_sm90(const Fp8GemmArgs& args, cudaStream_t stream);

}  // namespace hadal::cuda
