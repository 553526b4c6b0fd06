// Shapes and arguments of FP8 weight gradients on Hopper: dense, and over experts' pages.
//
//   N rows of the gradient   K columns   P pages of 128 tokens   E experts
//
// c[e] = (or +=) sum over the pages p of e, over t < 128, of a[p, n, t] scale_a[p, n] b[p, k, t]
// scale_b[p, k]. The matrix unit sums a page; the partial sum is scaled and added in f32 registers,
// pages in order (report, 3.3.2). Deterministic. An old value below f32's normal numbers counts as
// zero where it is added to.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace hadal::cuda {

struct Fp8WgradConfig {
  static constexpr int kRows = 256;   // of a tile: 128 for each matrix warpgroup
  static constexpr int kCols = 128;   // of a tile
  static constexpr int kDepth = 128;  // tokens of a stage: a page
  static constexpr int kStages = 3;
  static constexpr int kCluster = 2;    // blocks of neighbouring columns share their rows
  static constexpr int kGroup = 8;      // row tiles whose columns are walked together, for the L2
  static constexpr int kThreads = 384;  // a copy warpgroup and two matrix warpgroups

  static constexpr int kBytesA = kRows * kDepth;
  static constexpr int kBytesB = kCols * kDepth;
  static constexpr int kScales = kRows + kCols;
  // Sums on their way out: boxes of 16 rows x 32 columns, four for each matrix warp.
  static constexpr int kBoxRows = 16, kBoxCols = 32, kBoxes = 4;
  static constexpr int kBytesBox = kBoxRows * kBoxCols * 4;
  static constexpr int kBytesOut = 8 * kBoxes * kBytesBox;
  static constexpr int kSharedBytes =
      1024 + kStages * (kBytesA + kBytesB + kScales * 4) + kBytesOut + 2 * kStages * 8;
};

struct Fp8WgradArgs {
  const void* a;         // [pages, N, 128] e4m3
  const float* scale_a;  // [pages, N]
  const void* b;         // [pages, K, 128] e4m3
  const float* scale_b;  // [pages, K]
  float* c;              // rows of K elements
  int64_t c_row_stride, c_batch_stride;
  int accumulate;
  int n, k, pages;        // pages: of a and b
  int batches;            // experts, or parts of the pages of one matrix
  const int* page_begin;  // [E+1] on the device; null: batch i has pages [i part, (i + 1) part)
  int part_pages;
  int num_sms;     // SMs this launch may use
  int short_sums;  // 14 bits of the sum after every page (ops/fp8_format.h)
};

// REQUIRES: N, K and the strides of c multiples of 4; a, b, scales and c aligned to 16 bytes.
void fp8_wgrad_sm90(const Fp8WgradArgs& args, cudaStream_t stream);

}  // namespace hadal::cuda
