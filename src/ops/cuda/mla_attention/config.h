// Shapes and arguments of MLA training attention on Hopper: forward, and backward in two passes.
//
//   T tokens   S sequences   H heads   Dn, Dr, Dv  nope / rope / value width
//
// Causal inside each sequence; bf16 in and out, f32 sums and softmax, P and dS rounded to bf16 for
// their products. Tiles start at a sequence's own first token and every sum has one order, so a
// token's bits depend on its sequence alone. Backward never adds from two blocks into one place:
// one pass holds keys and sums dK and dV over queries, the other holds queries and sums dQ over
// keys; both form P and dP. Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace hadal::cuda {

// Head widths; a chunk is 64 columns, one 128-byte swizzled row of shared memory.
template <int kNopeWidth, int kRopeWidth, int kValueWidth>
struct MlaAttentionHead {
  static constexpr int kNope = kNopeWidth, kRope = kRopeWidth, kValue = kValueWidth;
  static constexpr int kNopeChunks = (kNope + 63) / 64, kRopeChunks = (kRope + 63) / 64;
  static constexpr int kKeyChunks = kNopeChunks + kRopeChunks;
  static constexpr int kValueChunks = (kValue + 63) / 64;
  static constexpr int kChunks = kKeyChunks + kValueChunks;
};

struct MlaAttentionConfig {
  static constexpr int kThreads = 384;      // a copy warpgroup and two matrix warpgroups
  static constexpr int kRows = 128;         // of the tile that a block holds: 64 a matrix warpgroup
  static constexpr int kStep = 64;          // rows of the other side in a step of backward
  static constexpr int kForwardKeys = 128;  // keys in a step of forward
  static constexpr int kForwardStages = 2;
  static constexpr int kBackwardStages = 3;
  static constexpr int kHeadGroup = 8;  // heads walked together: their keys stay in the L2
  static constexpr int kNumCounters = 4;
};

// Rows of a tensor [T, H, D] or [T, D]; strides in elements, multiples of 8, data aligned to 16.
struct MlaRows {
  const void* data;
  int64_t stride, head_stride;
};

struct MlaAttentionCall {
  const int* offsets;  // [S+1] on the device
  int64_t num_tokens;
  int num_seqs, max_len, num_heads;
  float scale;    // above zero
  int num_sms;    // SMs this launch may use
  int* counters;  // [kNumCounters], scratch
};

struct MlaForwardArgs {
  MlaAttentionCall call;
  MlaRows q, kv, k_pe;  // [T,H,Dn+Dr]  [T,H,Dn+Dv]  [T,Dr]   bf16
  MlaRows out;          // [T,H,Dv] bf16
  float* lse;           // [H, lse_stride]
  int64_t lse_stride;
};

struct MlaBackwardArgs {
  MlaAttentionCall call;
  MlaRows q, kv, k_pe, out, dout;
  const float* lse;
  int64_t lse_stride;
  MlaRows dq, dkv, dk_pe;
  float* stats;       // scratch of mla_backward_stats elements
  float* head_dk_pe;  // [H, T, Dr] scratch
};

// Statistics of a step's queries: kStep times lse, in powers of two, then kStep times dout . out. A
// sequence's steps are slots of their own, at most T / kStep + S in all: [H, slots, 2, kStep] f32.
inline int64_t mla_backward_slots(int64_t num_tokens, int64_t num_seqs) {
  return num_tokens / MlaAttentionConfig::kStep + num_seqs;
}
inline int64_t mla_backward_stats(int64_t num_tokens, int64_t num_seqs, int64_t num_heads) {
  return num_heads * mla_backward_slots(num_tokens, num_seqs) * 2 * MlaAttentionConfig::kStep;
}

// Head widths that have a kernel: 128 + 64 / 128, 64 + 32 / 64, 32 + 16 / 32.
bool mla_attention_sm90_has(int64_t nope, int64_t rope, int64_t value);

void mla_attention_forward_sm90(const MlaForwardArgs& args, int nope, cudaStream_t stream);
void mla_attention_backward_sm90(const MlaBackwardArgs& args, int nope, cudaStream_t stream);

}  // namespace hadal::cuda
