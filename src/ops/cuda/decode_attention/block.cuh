// What the phases of decode attention share: rows in shared memory, and products with them.
//
// NOTE: what another block wrote in this launch is read past the L1 (fresh_*), which is not kept
// coherent; weights, which nobody writes, are read through it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/decode_attention/config.h"
#include "ops/cuda/gemv/load.cuh"

namespace hadal::cuda {

using DecodeC = DecodeAttentionConfig;

__device__ __forceinline__ int4 fresh_16(const void* p) {
  return __ldcg(static_cast<const int4*>(p));
}
__device__ __forceinline__ float fresh_bf16(const __nv_bfloat16* p) {
  const unsigned short bits = __ldcg(reinterpret_cast<const unsigned short*>(p));
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

__device__ __forceinline__ int block_warp() { return static_cast<int>(threadIdx.x) / 32; }
__device__ __forceinline__ int block_lane() { return static_cast<int>(threadIdx.x) % 32; }
// Tasks are dealt to blocks first, then to their warps, so that every SM has the same share.
__device__ __forceinline__ int first_warp_task() {
  return static_cast<int>(blockIdx.x) + block_warp() * static_cast<int>(gridDim.x);
}
__device__ __forceinline__ int warp_task_step() {
  return DecodeC::kWarps * static_cast<int>(gridDim.x);
}

// The sum over the block's threads, for all of them. Ends with a barrier.
__device__ __forceinline__ float sum_of_block(float value) {
  __shared__ float of_warp[DecodeC::kWarps];
  value = sum_of_warp(value);
  if (block_lane() == 0) of_warp[block_warp()] = value;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < DecodeC::kWarps; ++w) total += of_warp[w];
  __syncthreads();
  return total;
}

// `rows` rows of `width` elements into shared memory, end to end. Needs a barrier after it.
__device__ __forceinline__ void bring_rows(const __nv_bfloat16* from, int64_t stride, int rows,
                                           int width, __nv_bfloat16* to) {
  const int units = width / 8;
  for (int i = static_cast<int>(threadIdx.x); i < rows * units; i += DecodeC::kThreads) {
    const int r = i / units, u = i - r * units;
    reinterpret_cast<int4*>(to + r * width)[u] = fresh_16(from + r * stride + u * 8);
  }
}

// The same with RMSNorm, rounded to bf16. Ends with a barrier.
__device__ __forceinline__ void bring_normed(const __nv_bfloat16* from, int64_t stride, int rows,
                                             int width, const float* gain, float eps,
                                             __nv_bfloat16* to) {
  const int units = width / 8;
  for (int r = 0; r < rows; ++r) {
    auto* const row = reinterpret_cast<int4*>(to + r * width);
    float squares = 0.0f;
    for (int u = static_cast<int>(threadIdx.x); u < units; u += DecodeC::kThreads) {
      const int4 raw = fresh_16(from + r * stride + u * 8);
      row[u] = raw;
      float v[8];
      unpack_bf16(raw, v);
#pragma unroll
      for (float e : v) squares += e * e;
    }
    const float inverse = rsqrtf(sum_of_block(squares) / static_cast<float>(width) + eps);
    for (int u = static_cast<int>(threadIdx.x); u < units; u += DecodeC::kThreads) {
      float v[8];
      unpack_bf16(row[u], v);
      const float4 g0 = __ldg(reinterpret_cast<const float4*>(gain) + 2 * u);
      const float4 g1 = __ldg(reinterpret_cast<const float4*>(gain) + 2 * u + 1);
      const float g[8] = {g0.x, g0.y, g0.z, g0.w, g1.x, g1.y, g1.z, g1.w};
      uint32_t packed[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        packed[j] = pack_bf16(v[2 * j] * inverse * g[2 * j], v[2 * j + 1] * inverse * g[2 * j + 1]);
      row[u] = *reinterpret_cast<const int4*>(packed);
    }
  }
  __syncthreads();
}

// sum[r][o] += x row r . weight row o over this lane's share of begin .. end - 1; x in shared
// memory.
template <GemvWeight kType, int kRows, int kOutputs>
__device__ __forceinline__ void add_products(const ExpertRow (&row)[kOutputs],
                                             const __nv_bfloat16* x, int x_stride, int begin,
                                             int end, float (&sum)[kRows][kOutputs]) {
  using Load = GemvLoad<kType>;
  constexpr int kElements = Load::kElements, kStep = 32 * kElements, kUnroll = 8 / kOutputs;
  for (int first = begin + block_lane() * kElements; first < end; first += kUnroll * kStep) {
    int4 raw[kUnroll][kOutputs];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int o = 0; o < kOutputs; ++o)
        if (first + u * kStep < end)
          raw[u][o] = __ldg(
              reinterpret_cast<const int4*>(row[o].data + (first + u * kStep) * Load::kBytes));
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int k = first + u * kStep;
      if (k >= end) break;
      float w[kOutputs][kElements];
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        Load::unpack(raw[u][o], w[o]);
        if constexpr (kType == GemvWeight::kE4M3) {
          const float s = __ldg(row[o].scale + k / 128);
#pragma unroll
          for (float& e : w[o]) e *= s;
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int part = 0; part < kElements; part += 4) {
          const int2 four = *reinterpret_cast<const int2*>(x + r * x_stride + k + part);
          const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&four);
          const float2 lo = __bfloat1622float2(pairs[0]), hi = __bfloat1622float2(pairs[1]);
          const float a[4] = {lo.x, lo.y, hi.x, hi.y};
#pragma unroll
          for (int o = 0; o < kOutputs; ++o)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[r][o] = fmaf(a[i], w[o][part + i], sum[r][o]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) sum[r][o] = sum_of_warp(sum[r][o]);
}

// to[t, n] and to[t, n + 1]: weight rows n and n + 1 . x row t, by one warp.
template <GemvWeight kType, int kRows>
__device__ __forceinline__ void product_pair(const ExpertMatrices& w, int n, int k,
                                             const __nv_bfloat16* x, int tokens, __nv_bfloat16* to,
                                             int64_t to_stride) {
  constexpr int kBytes = GemvLoad<kType>::kBytes;
  const ExpertRow rows[2] = {expert_row<kBytes>(w, 0, n), expert_row<kBytes>(w, 0, n + 1)};
  float sum[kRows][2] = {};
  add_products<kType, kRows, 2>(rows, x, k, 0, k, sum);
  if (block_lane() != 0) return;
#pragma unroll
  for (int t = 0; t < kRows; ++t)
    if (t < tokens)
      *reinterpret_cast<uint32_t*>(to + t * to_stride + n) = pack_bf16(sum[t][0], sum[t][1]);
}

}  // namespace hadal::cuda
