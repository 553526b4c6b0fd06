// Shapes and arguments of the BF16 matrix products on Hopper: dense, batched, and over experts.
//
//   M rows   N columns   K inner width of the product   B batches (heads, experts or pages)
//
// c[b] = (or +=) a[b] b[b]^T with bf16 operands, sums in f32 in the matrix unit, c in bf16 or f32.
// An element is one chain over K in steps of 16, whatever M, the batch, or the SMs: a row's result
// depends on nothing else in the call. Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace hadal::cuda {

enum class Bf16Layout : uint8_t {
  kNt,  // a [M,K]   b [N,K]
  kNn,  // a [M,K]   b [K,N]
  kTn,  // a [K,M]   b [K,N]
};

enum class Bf16Work : uint8_t {
  kBatch,       // every batch has the same M, N, K
  kPages,       // a and c are pages of rows of experts, b the experts' weights (kNt, kNn)
  kExpertRows,  // a and b are pages of rows of experts, c the experts' gradients; K counts rows
};

template <int kColumns>
struct Bf16GemmConfig {
  static constexpr int kRows = 128;  // rows of a tile, and of a page
  static constexpr int kCols = kColumns;
  static constexpr int kDepth = 64;  // K of a stage: 128 bytes
  static constexpr int kStages = kColumns == 256 ? 4 : 6;
  static constexpr int kGroup = 8;      // row tiles whose columns are walked together, for the L2
  static constexpr int kThreads = 384;  // a copy warpgroup and two matrix warpgroups

  static constexpr int kBytesA = kRows * kDepth * 2;
  static constexpr int kBytesB = kCols * kDepth * 2;
  static constexpr int kSharedBytes = 1024 + kStages * (kBytesA + kBytesB) + 2 * kStages * 8;
};

// Matrices [rows, cols] of bf16, `batches` of them; strides in elements.
struct Bf16Matrix {
  const void* data;
  int64_t rows, cols, row_stride;
  int64_t batches, batch_stride;
};

struct Bf16GemmArgs {
  Bf16Matrix a, b;
  void* c;  // rows of N elements
  int64_t c_row_stride, c_batch_stride;
  int m, n, k;   // of kBatch; kPages ignores m, kExpertRows k
  int batches;   // of kBatch: batches; else experts
  int k_split;   // of kBatch and kTn: where positive, batch i is the product over K of
                 // [i k_split, (i + 1) k_split), a multiple of the depth, of the one matrix
  int k_repeat;  // of kNt and kBatch: where positive, a has only so many of K, again and again; a
                 // multiple of the depth
  int c_is_f32;  // else bf16
  int accumulate;

  // Experts' rows, as in ops/pages.h; device memory.
  const int* counts;      // [E]
  const int* page_begin;  // [E+1]
  const int *a_page, *b_page,
      *c_page;  // [positions] page of a position; null: position i is page i
  int places;   // positions that every list has
  int c_pages;  // pages of c, of kPages

  // Of bf16_gemm_e4m3_sm90: the scales of b in blocks of 128 x 128. Row r of batch i of b is row
  // b_scale_row + i * b_scale_batch_rows + r of the matrix that they belong to.
  const float* b_scale;
  int64_t b_scale_row_stride, b_scale_batch_stride;
  int b_scale_row, b_scale_batch_rows;

  int num_sms;  // SMs this launch may use
};

// True if the copy engine can read the matrix: 16-byte aligned data and strides.
bool bf16_gemm_reads(const Bf16Matrix& matrix);

// REQUIRES: bf16_gemm_reads(a), (b); n, c_row_stride and c_batch_stride even.
void bf16_gemm_sm90(Bf16Layout layout, Bf16Work work, const Bf16GemmArgs& args,
                    cudaStream_t stream);

// The same as kNt for few rows with b in block FP8: rounded to bf16 after its scale.
// True if the copy engine can read b, and 64 neighbouring columns of c never straddle a block.
bool bf16_gemm_reads_e4m3(const Bf16GemmArgs& args);
// REQUIRES: bf16_gemm_reads(a), bf16_gemm_reads_e4m3(args); kBatch of at most 64 rows, or kPages.
void bf16_gemm_e4m3_sm90(Bf16Work work, const Bf16GemmArgs& args, cudaStream_t stream);

}  // namespace hadal::cuda
