// Arguments of a mixture of experts for few tokens: an up and a down launch.
//
//   T tokens   D model width   F, Fs hidden widths of routed and shared experts   K choices
//
// Up: hidden = weight * silu(w1 x) * (w3 x) for each choice and the shared expert. Down: y += the
// sum over choices and the shared expert of w2 hidden, in an order that D, F, Fs and K fix, and
// over ranks that have other experts, in theirs. bf16 but for the weights, which may be e4m3 with
// block scales; sums in f32. REQUIRES: D and F, Fs multiples of 16, D at most kMostWidth, 16-byte
// aligned rows. Deterministic; a token does not depend on the others.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/peer_sum.cuh"
#include "ops/cuda/gemv/config.h"

namespace hadal::cuda {

// Matrices of experts [rows, cols] at even distances.
struct ExpertMatrices {
  const void* data;
  int64_t row_stride, expert_stride;
  const float* scale;
  int64_t scale_row_stride, scale_expert_stride;
  int scale_row;
};

struct MoeFewArgs {
  static constexpr int kMostWidth = 20480;  // D: what the warps of a block hold in shared memory
  GemvWeight type;
  ExpertMatrices w1, w3, w2;
  ExpertMatrices shared_w1, shared_w3, shared_w2;
  const void* x;  // [T, D] bf16
  int64_t x_row_stride;
  const int* topk_idx;  // [T, K]
  int64_t idx_row_stride;
  const float* topk_weight;  // [T, K]
  int64_t weight_row_stride;
  void* hidden;         // [T, K, F] bf16, scratch
  void* shared_hidden;  // [T, Fs] bf16, scratch
  void* y;              // [T, D]
  int64_t y_row_stride;
  int y_is_f32;
  int num_tokens, d, f, shared_f, num_choices;
  int first_expert, num_experts;  // those that are here
  PeerSumArgs sums;
  int down_share;  // set by the launch: elements of a hidden row for a warp
};

void moe_few_tokens(const MoeFewArgs& args, cudaStream_t stream);

}  // namespace hadal::cuda
