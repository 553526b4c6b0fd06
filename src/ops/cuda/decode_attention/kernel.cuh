// The attention half of a layer for a few tokens: phases of one cooperative launch, a barrier of
// the grid between any two, under which each block asks for the weights of its next phase.
//
//   1  attention norm; query (or its down-projection) and latent
//   1b norm and up-projection of the query, where it has a down-projection
//   2  latent and key into the cache; query turned and absorbed
//   3  attention over splits of the context
//   4  splits joined, un-absorbed
//   5  output projection, summed over ranks that have other heads, added to x
//   6  FFN norm; the gate's logits
//
// On an H200 28 us of a layer with 16 heads at width 2048 and 600 tokens (decode_attention_bench);
// memory alone would take 7. The experts' products were phases here too and lost: a block an SM
// reads 1.9 TB/s, their own launches 2.6 (moe_of_few); the copy engine filling rings in shared
// memory gave 1.4 to 1.7, and calling rows into the L2 ahead cost more than it gave.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/decode_attention/attention.cuh"
#include "ops/cuda/detail/grid_barrier.cuh"

namespace hadal::cuda {

// The rows that the FFN reads, and the gate's logits of them: a block for an expert.
template <int kRows>
class DecodeGate {
  static constexpr int kAhead = 4;

 public:
  __device__ explicit DecodeGate(const DecodeAttentionArgs& args) : args_(args) {
    load(static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x));
  }
  __device__ void run(__nv_bfloat16* rows, float* scales) {
    const int thread = static_cast<int>(threadIdx.x), units = args_.d / 4;
    const int stride = row_stride_of(args_.d);
    NormedRows<GemvWeight::kBF16>(args_.x, args_.x_row_stride, args_.tokens, args_.d,
                                  args_.ffn_norm, args_.eps)
        .bring(rows, scales);
    if (blockIdx.x == gridDim.x - 1)
      for (int t = 0; t < args_.tokens; ++t)
        for (int i = thread; i < args_.d / 8; i += DecodeC::kThreads)
          reinterpret_cast<int4*>(args_.normed + t * args_.d)[i] =
              reinterpret_cast<const int4*>(rows + t * stride)[i];
    for (int e = static_cast<int>(blockIdx.x); e < args_.experts;) {
      float sum[kRows] = {};
      for (int first = thread; first < units;) {
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          const int u = first + j * DecodeC::kThreads;
          if (u >= units) break;
#pragma unroll
          for (int t = 0; t < kRows; ++t) {
            const int2 four = *reinterpret_cast<const int2*>(rows + t * stride + u * 4);
            const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&four);
            const float2 lo = __bfloat1622float2(pairs[0]), hi = __bfloat1622float2(pairs[1]);
            sum[t] = fmaf(lo.x, weight_[j].x, sum[t]);
            sum[t] = fmaf(lo.y, weight_[j].y, sum[t]);
            sum[t] = fmaf(hi.x, weight_[j].z, sum[t]);
            sum[t] = fmaf(hi.y, weight_[j].w, sum[t]);
          }
        }
        first += kAhead * DecodeC::kThreads;
        if (first < units) load(e, first);
      }
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        if (t >= args_.tokens) break;
        const float total = sum_of_block(sum[t]);
        if (thread == 0) args_.logits[t * args_.experts + e] = total;
      }
      e += static_cast<int>(gridDim.x);
      load(e, thread);
    }
  }

 private:
  __device__ void load(int expert, int first) {
    if (expert >= args_.experts) return;
    const auto* const from =
        reinterpret_cast<const float4*>(args_.gate_weight + static_cast<int64_t>(expert) * args_.d);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int u = first + j * DecodeC::kThreads;
      if (u < args_.d / 4) weight_[j] = __ldg(from + u);
    }
  }

  const DecodeAttentionArgs& args_;
  float4 weight_[kAhead];
};

// Words of barriers; a stream has one for itself (DecodeAttentionArgs::barrier).
static __device__ uint32_t decode_barriers[DecodeAttentionConfig::kMostStreams];

template <GemvWeight kType, int kRows, CacheRows kFormat>
__global__ void __launch_bounds__(DecodeAttentionConfig::kThreads, 1)
    decode_attention_kernel(const __grid_constant__ DecodeAttentionArgs args,
                            const __grid_constant__ ops::cuda::FaultSite no_page) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[2];  // pages that have arrived
  __shared__ float units[kRows];
  __shared__ TileSums<kRows> sums;
  auto* const rows = reinterpret_cast<__nv_bfloat16*>(shared);
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);

  if (threadIdx.x == 0) {
    for (uint64_t& b : full) barrier_init(&b, 1);
    barrier_init_fence();
  }
  __syncthreads();

  using Product = DecodeProduct<kType, kRows, 8>;
  using Output = typename Product::Output;
  const int q_width = args.heads * (args.nope + DecodeC::kRope);
  const bool has_rank = args.q_rank > 0;
  Product inputs(has_rank ? Output{&args.wq_a, args.q_rank, args.q_lat, args.q_rank}
                          : Output{&args.wq, q_width, args.q, q_width},
                 {&args.wkv_a, DecodeC::kWidth, args.kv_lat, DecodeC::kWidth}, args.d, false);
  wait_for_previous_kernel();
  let_next_kernel_start();
  GridBarrier grid(decode_barriers + args.barrier);
  const NormedRows<kType> x(args.x, args.x_row_stride, args.tokens, args.d, args.attn_norm,
                            args.eps);
  inputs.ask_rest();
  x.bring(rows, units);
  inputs.run(rows, units, args.tokens, sums);
  if (has_rank) {
    grid.arrive();
    Product query({&args.wq_b, q_width, args.q, q_width}, {&args.wq_b, 0, args.q, q_width},
                  args.q_rank, false);
    query.ask_rest();
    grid.wait();
    NormedRows<kType>(args.q_lat, args.q_rank, args.tokens, args.q_rank, args.q_norm, args.eps)
        .bring(rows, units);
    query.run(rows, units, args.tokens, sums);
  }

  using Absorb = DecodeAbsorb<kType, kRows>;
  grid.arrive();
  Absorb absorb(args, block);
  const DecodePages<kFormat> pages(shared + args.pages_at);
  const DecodeSplit first_split(args, block);
  if (args.pages_early) bring_first_pages(args, first_split, pages, full);
  grid.wait();
  for (int t = blocks - 1 - block; t < args.tokens; t += blocks)
    decode_latent<kFormat>(args, no_page, t);
  for (int i = block; i < args.heads * Absorb::kChunks;) {
    absorb.run(reinterpret_cast<float*>(shared));
    i += blocks;
    if (i < args.heads * Absorb::kChunks) absorb.find(i);
  }

  async_proxy_fence();  // rows lay where pages may come
  grid.arrive();
  grid.wait();
  uint32_t parity[2] = {0, 0};
  for (int i = block; i < args.tokens * args.head_groups() * args.max_splits; i += blocks) {
    const DecodeSplit split = i == block ? first_split : DecodeSplit(args, i);
    if (i != block || !args.pages_early) {
      async_proxy_fence();  // rows of the last task's last page were written by hand
      __syncthreads();
      bring_first_pages(args, split, pages, full);
    }
    decode_attend<kFormat>(args, split, pages, full, parity, shared);
  }

  grid.arrive();
  DecodeValues<kType, kRows> values(args, block);
  grid.wait();
  const int value_tasks = args.heads * (args.v / 16);
  for (int i = block; i < value_tasks;) {
    values.run(rows, units, sums);
    i += blocks;
    if (i < value_tasks) values.find(i);
  }

  const int out_width = args.heads * args.v;
  using Final = DecodeProduct<kType, kRows, 16>;
  grid.arrive();
  Final output({&args.wo, args.d, args.x, args.x_row_stride}, {&args.wo, 0, args.x, 0}, out_width,
               true, &args.sums);
  output.ask_rest();
  grid.wait();
  bring_rows<kType>(args.out, out_width, args.tokens, out_width, rows, units);
  output.run(rows, units, args.tokens, sums);

  const uint32_t sum_number = args.sums.size > 0 ? peer_sum_number(args.sums) : 0;
  grid.arrive();
  DecodeGate<kRows> gate(args);
  grid.wait();
  if (args.sums.size > 0 && block == 0 && threadIdx.x == 0) peer_sum_is_made(args.sums, sum_number);
  gate.run(rows, units);
}

}  // namespace hadal::cuda
