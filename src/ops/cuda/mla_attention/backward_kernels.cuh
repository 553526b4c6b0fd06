// Kernels of backward of MLA attention: statistics, the two passes, the shared key's gradient.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/mla_attention/backward_keys.cuh"
#include "ops/cuda/mla_attention/backward_queries.cuh"

namespace hadal::cuda {

template <class D, bool kHoldsKeys>
__global__ void __launch_bounds__(MlaAttentionConfig::kThreads, 1)
    mla_backward_kernel_sm90(const __grid_constant__ MlaBackwardArgs args,
                             const __grid_constant__ MlaBackwardMaps maps) {
  extern __shared__ __align__(1024) uint8_t raw[];
  const MlaBackwardShared<D> s(raw);
  if (threadIdx.x == 0) {
    prefetch_map(&maps.q);
    prefetch_map(&maps.kv);
    prefetch_map(&maps.k_pe);
    prefetch_map(&maps.dout);
    s.init();
  }
  __syncthreads();
  const int group = uniform(static_cast<int>(threadIdx.x) / 128);
  if (group == 0) {
    registers_shrink<24>();
    if (threadIdx.x < 32) mla_backward_copy<D, kHoldsKeys>(args, maps, s);
  } else {
    registers_grow<240>();
    if constexpr (kHoldsKeys) {
      mla_keys_multiply<D>(args, s, group - 1);
    } else {
      mla_queries_multiply<D>(args, s, group - 1);
    }
  }
}

// Statistics of 64 rows of one sequence: a block for each step of rows and each group of heads.
// Rows past the end of the sequence get an infinite lse: their P is zero.
template <class D>
__global__ void __launch_bounds__(256) mla_backward_stats_kernel(const MlaBackwardArgs args) {
  using C = MlaAttentionConfig;
  constexpr int kLanes = D::kValue / 8;  // 16 bytes each
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x < C::kNumCounters)
    args.call.counters[threadIdx.x] = 0;  // of the kernels after this one
  const int slot = static_cast<int>(blockIdx.x);
  int seq = 0, end = args.call.num_seqs;  // the last sequence that starts at or before the slot
  while (end - seq > 1) {
    const int middle = (seq + end) / 2;
    if (__ldg(args.call.offsets + middle) / C::kStep + middle <= slot) {
      seq = middle;
    } else {
      end = middle;
    }
  }
  const int begin = __ldg(args.call.offsets + seq),
            length = __ldg(args.call.offsets + seq + 1) - begin;
  const int first = (slot - (begin / C::kStep + seq)) * C::kStep;
  if (first >= length) return;
  const int head0 = static_cast<int>(blockIdx.y) * C::kHeadGroup;
  const int heads = min(C::kHeadGroup, args.call.num_heads - head0);
  const int part = static_cast<int>(threadIdx.x) % kLanes;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x) / kLanes; i < C::kStep * heads; i += 256 / kLanes) {
    const int row = i / heads, head = head0 + i - row * heads;
    const bool in_use = first + row < length;
    const int64_t token = begin + (in_use ? first + row : first);
    const uint4 a = *reinterpret_cast<const uint4*>(mla_row(args.out, token, head) + part * 8);
    const uint4 b = *reinterpret_cast<const uint4*>(mla_row(args.dout, token, head) + part * 8);
    const uint32_t x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
    float delta = 0.0f;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float2 u = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&x[k])),
                   v = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&y[k]));
      delta = fmaf(u.x, v.x, delta);
      delta = fmaf(u.y, v.y, delta);
    }
#pragma unroll
    for (int d = kLanes / 2; d > 0; d /= 2) delta += __shfl_xor_sync(0xFFFFFFFFu, delta, d);
    if (part > 0) continue;
    const float lse = in_use ? args.lse[head * args.lse_stride + token] : INFINITY;
    float* stats = mla_stats(args, head, slot) + row;
    stats[0] = lse * 1.4426950408889634f;
    stats[C::kStep] = in_use ? delta : 0.0f;
  }
}

// The shared key's gradient: heads in order, four columns a thread.
template <class D>
__global__ void __launch_bounds__(256) mla_backward_dk_pe_kernel(const MlaBackwardArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t count = args.call.num_tokens * (D::kRope / 4);
  if (i >= count) return;
  const float4* from = reinterpret_cast<const float4*>(args.head_dk_pe) + i;
  float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
  for (int head = 0; head < args.call.num_heads; ++head) {
    const float4 part = __ldcs(from + head * count);
    sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
  }
  __nv_bfloat16* to = mla_row(args.dk_pe, i / (D::kRope / 4), 0) + i % (D::kRope / 4) * 4;
  *reinterpret_cast<uint2*>(to) = {pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w)};
}

}  // namespace hadal::cuda
