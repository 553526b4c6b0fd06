// Shapes and arguments of a layer's attention half for a few tokens, in one launch.
//
//   T tokens   S sequences   D model width   H heads   R = 512 latent, Dr = 64 rope width
//   Dn, Dv head widths   Rq query rank   E experts
//
// A decode step at batch 1 is a chain of a dozen small products a layer. As launches, each costs
// some microseconds in which memory idles; here the blocks of one cooperative launch go from phase
// to phase over barriers of the grid (kernel.cuh lists them). bf16 rows, sums in f32, rounded to
// bf16 where the ops that this stands for store their results. Deterministic. The order of sums
// depends on the number of SMs and of tokens: Numerics::kFastest alone.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>

#include "ops/cuda/detail/cache_rows.h"
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/peer_sum.cuh"
#include "ops/cuda/gemv/moe.h"
#include "ops/few_tokens.h"

namespace hadal::cuda {

struct DecodeAttentionConfig {
  static constexpr int kMaxTokens = 4;
  static constexpr int kThreads = 512, kWarps = kThreads / 32;  // of a block; one block an SM
  static constexpr int kLatent = 512, kRope = 64, kWidth = kLatent + kRope;
  static constexpr int kPage = 64;            // tokens of a cache page
  static constexpr int kHeads = 16;           // of an attention task
  static constexpr int kStride = kWidth + 8;  // elements between rows in shared memory
  static constexpr int kMaxSplits = 256;
  static constexpr int kMostStreams = 4096;  // that such kernels are launched in

  // Attention: queries, scores in shares of the depth, probabilities, and two pages; of FP8 rows
  // these and one page widened.
  static constexpr int kQueryBytes = kHeads * kStride * 2;
  static constexpr int kPageBytes = kPage * kStride * 2;
  static constexpr int kFp8PageBytes = kPage * static_cast<int>(kV3Fp8Row.bytes());
  static constexpr int kDepthShares = 4;
  static constexpr int kScoreStride = kPage + 8;
  static constexpr int kScoreBytes = kDepthShares * kHeads * kScoreStride * 4;
  static constexpr int kProbStride = kPage + 8;
  static constexpr int kProbBytes = kHeads * kProbStride * 2;
  static constexpr int kMostShared = (227 - 4) << 10;  // beside what the kernel has of its own
  static constexpr int kHeadBytes = kQueryBytes + kScoreBytes + kProbBytes;
  static constexpr int kOutStride = kLatent + 8;  // floats between heads' results, in their place
  static_assert(kHeads * kOutStride * 4 <= kHeadBytes);
  static constexpr int pages_bytes(CacheRows rows) {
    return rows == CacheRows::kFp8 ? kPageBytes + 2 * kFp8PageBytes : 2 * kPageBytes;
  }
};

struct DecodeAttentionArgs {
  GemvWeight type;                                  // of all matrices but the gate's
  ExpertMatrices wq, wq_a, wq_b, wkv_a, wkv_b, wo;  // wq, or wq_a and wq_b where Rq > 0
  const float *attn_norm, *q_norm, *kv_norm, *ffn_norm;
  float eps, scale;  // of norms; of scores

  const float* gate_weight;  // [E, D]

  __nv_bfloat16* x;  // [T, D] in and out
  int64_t x_row_stride;
  int tokens, seqs, d, heads, nope, v, q_rank, experts;
  ops::RopeLayout layout;
  const float* rope;  // [T, Dr]
  int64_t rope_stride;
  const int *offsets, *positions;  // [S+1]  [T]
  CacheRows rows;
  void* pages;       // [num_pages, kPage, R+Dr] bf16, or [.., .., kV3Fp8Row.bytes()]
  const int* table;  // [S, table_stride]
  int64_t num_pages;
  int table_stride, table_places;

  __nv_bfloat16* normed;  // [T, D] out: x after the FFN's norm
  float* logits;          // [T, E] out

  // Scratch, of T rows each where it says T.
  __nv_bfloat16 *q_lat, *q;  // [T, Rq]  [T, H, Dn+Dr]
  __nv_bfloat16* kv_lat;     // [T, R+Dr]
  __nv_bfloat16* q_abs;      // [T, H, R+Dr]
  float* partial;            // [tasks, kHeads, R]
  float2* partial_stat;      // [tasks, kHeads]   maximum in powers of two, sum
  __nv_bfloat16* out;        // [T, H*Dv]
  int max_splits;            // of a token's context: tasks are T * ceil(H/kHeads) * max_splits
  PeerSumArgs sums;          // ranks that have the other heads
  // Set by the launch: where pages lie in shared memory, and whether nothing else does, so that
  // they can be on their way from the start; the barrier of the stream.
  int pages_at, pages_early, barrier;

  __host__ __device__ int head_groups() const {
    return (heads + DecodeAttentionConfig::kHeads - 1) / DecodeAttentionConfig::kHeads;
  }
};

// Bytes of shared memory for these sizes.
int64_t decode_attention_shared_bytes(const DecodeAttentionArgs& args);
// REQUIRES: the device can hold `num_sms` such blocks at once; T <=
// kMaxTokens; D, Rq, H*Dv, F, Fs multiples of 16, Dn and Dv of 16; rows aligned to 16 bytes.
// `no_page` is raised with the position and the sequence of a token without a page.
void decode_attention_sm90(DecodeAttentionArgs args, const ops::cuda::FaultSite& no_page,
                           int num_sms, cudaStream_t stream);

}  // namespace hadal::cuda
