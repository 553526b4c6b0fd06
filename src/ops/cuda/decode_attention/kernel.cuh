// The attention half of a layer for a few tokens: phases of one cooperative launch, a barrier of
// the grid between any two.
//
//   1  attention norm; query (or its down-projection) and latent
//   1b norm and up-projection of the query, where it has a down-projection
//   2  latent and key into the cache; query turned and absorbed
//   3  attention over splits of the context
//   4  splits joined, un-absorbed
//   5  output projection, added to x
//   6  FFN norm; the gate's logits
//
// Measured on an H100: 38 us of a layer with 16 heads at width 2048, where the launches that it
// stands for took 66. The experts' products were phases here too and lost: a block an SM reads 1.9
// TB/s, their own launches 2.6 (moe_of_few); the copy engine filling rings in shared memory
// gave 1.4 to 1.7, and calling rows into the L2 ahead cost more than it gave.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cooperative_groups.h>

#include "ops/cuda/decode_attention/attention.cuh"

namespace hadal::cuda {

template <GemvWeight kType, int kRows>
__device__ inline void decode_inputs(const DecodeAttentionArgs& args, __nv_bfloat16* rows) {
  bring_normed(args.x, args.x_row_stride, args.tokens, args.d, args.attn_norm, args.eps, rows);
  const int q_width = args.heads * (args.nope + DecodeC::kRope);
  const int first = args.q_rank > 0 ? args.q_rank : q_width;
  __nv_bfloat16* const to = args.q_rank > 0 ? args.q_lat : args.q;
  for (int i = first_warp_task(); i < (first + DecodeC::kWidth) / 2; i += warp_task_step()) {
    const int n = 2 * i;
    if (n < first)
      product_pair<kType, kRows>(args.q_rank > 0 ? args.wq_a : args.wq, n, args.d, rows,
                                 args.tokens, to, first);
    else
      product_pair<kType, kRows>(args.wkv_a, n - first, args.d, rows, args.tokens, args.kv_lat,
                                 DecodeC::kWidth);
  }
}

template <GemvWeight kType, int kRows>
__device__ inline void decode_query(const DecodeAttentionArgs& args, __nv_bfloat16* rows) {
  bring_normed(args.q_lat, args.q_rank, args.tokens, args.q_rank, args.q_norm, args.eps, rows);
  const int width = args.heads * (args.nope + DecodeC::kRope);
  for (int i = first_warp_task(); i < width / 2; i += warp_task_step())
    product_pair<kType, kRows>(args.wq_b, 2 * i, args.q_rank, rows, args.tokens, args.q, width);
}

// x[t, n] += weight row n . row t.
template <GemvWeight kType, int kRows>
__device__ inline void decode_output(const DecodeAttentionArgs& args, __nv_bfloat16* rows) {
  const int k = args.heads * args.v;
  bring_rows(args.out, k, args.tokens, k, rows);
  __syncthreads();
  for (int n = first_warp_task(); n < args.d; n += warp_task_step()) {
    const ExpertRow row[1] = {expert_row<GemvLoad<kType>::kBytes>(args.wo, 0, n)};
    float sum[kRows][1] = {};
    add_products<kType, kRows, 1>(row, rows, k, 0, k, sum);
    if (block_lane() != 0) continue;
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      if (t >= args.tokens) break;
      __nv_bfloat16* const to = args.x + t * args.x_row_stride + n;
      *to = __float2bfloat16(fresh_bf16(to) + sum[t][0]);
    }
  }
}

// The rows that the FFN reads, and the gate's logits of them.
template <int kRows>
__device__ inline void decode_ffn_inputs(const DecodeAttentionArgs& args, __nv_bfloat16* rows) {
  bring_normed(args.x, args.x_row_stride, args.tokens, args.d, args.ffn_norm, args.eps, rows);
  if (blockIdx.x == gridDim.x - 1)
    for (int i = static_cast<int>(threadIdx.x); i < args.tokens * args.d / 8;
         i += DecodeC::kThreads)
      reinterpret_cast<int4*>(args.normed)[i] = reinterpret_cast<const int4*>(rows)[i];
  for (int e = first_warp_task(); e < args.experts; e += warp_task_step()) {
    const ExpertRow row[1] = {
        {reinterpret_cast<const char*>(args.gate_weight + static_cast<int64_t>(e) * args.d),
         nullptr}};
    float sum[kRows][1] = {};
    add_products<GemvWeight::kF32, kRows, 1>(row, rows, args.d, 0, args.d, sum);
    if (block_lane() != 0) continue;
#pragma unroll
    for (int t = 0; t < kRows; ++t)
      if (t < args.tokens) args.logits[t * args.experts + e] = sum[t][0];
  }
}

template <GemvWeight kType, int kRows, CacheRows kFormat>
__global__ void __launch_bounds__(DecodeAttentionConfig::kThreads, 1)
    decode_attention_kernel(const __grid_constant__ DecodeAttentionArgs args,
                            const __grid_constant__ ops::cuda::FaultSite no_page) {
  extern __shared__ __align__(128) uint8_t shared[];
  auto* const rows = reinterpret_cast<__nv_bfloat16*>(shared);
  const auto grid = cooperative_groups::this_grid();
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);

  decode_inputs<kType, kRows>(args, rows);
  grid.sync();
  if (args.q_rank > 0) {
    decode_query<kType, kRows>(args, rows);
    grid.sync();
  }
  for (int t = blocks - 1 - block; t < args.tokens; t += blocks)
    decode_latent<kFormat>(args, no_page, t);
  constexpr int kChunks = DecodeC::kLatent / 64;
  for (int i = block; i < args.heads * kChunks; i += blocks)
    decode_absorb<kType, kRows>(args, i / kChunks, i % kChunks * 64,
                                reinterpret_cast<float*>(shared));
  grid.sync();
  for (int i = block; i < args.tokens * args.head_groups() * args.max_splits; i += blocks)
    decode_attend<kFormat>(args, i, shared);
  grid.sync();
  const int value_chunks = args.v / DecodeC::kWarps;
  for (int i = block; i < args.heads * value_chunks; i += blocks)
    decode_values<kType, kRows>(args, i / value_chunks, i % value_chunks * DecodeC::kWarps, rows);
  grid.sync();
  decode_output<kType, kRows>(args, rows);
  grid.sync();
  decode_ffn_inputs<kRows>(args, rows);
}

}  // namespace hadal::cuda
