// The gate with one warp a token; quantisers with 8 elements a thread and 16 lanes a scale.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "ops/cuda/fused/config.h"

namespace hadal::cuda {

// ---- gate

// Floats in an order that unsigned comparison keeps; 0 is below all.
__device__ __forceinline__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits ^ (bits >> 31 ? 0xFFFFFFFFu : 0x80000000u);
}

__global__ void __launch_bounds__(256) gate_v3_kernel(const GateArgs args) {
  constexpr uint32_t kAll = 0xFFFFFFFFu;
  __shared__ float chosen_score[8][8];
  __shared__ int chosen_idx[8][8];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int step = static_cast<int>(gridDim.x) * 8;
  float bias[8];
  *reinterpret_cast<float4*>(bias) = reinterpret_cast<const float4*>(args.bias)[lane * 2];
  *reinterpret_cast<float4*>(bias + 4) = reinterpret_cast<const float4*>(args.bias)[lane * 2 + 1];
  for (int token = static_cast<int>(blockIdx.x) * 8 + warp; token < args.num_tokens;
       token += step) {
    // Lane l has experts 8 l .. 8 l + 7; four lanes make a group.
    const int64_t at = static_cast<int64_t>(token) * 64 + lane * 2;
    float score[8];
    *reinterpret_cast<float4*>(score) = reinterpret_cast<const float4*>(args.logits)[at];
    *reinterpret_cast<float4*>(score + 4) = reinterpret_cast<const float4*>(args.logits)[at + 1];
    uint32_t key[8];
    float first = -INFINITY, second = -INFINITY;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      score[i] = 1.0f / (1.0f + expf(-score[i]));
      const float biased = score[i] + bias[i];
      key[i] = ordered(biased);
      second = fmaxf(second, fminf(first, biased));
      first = fmaxf(first, biased);
    }
    reinterpret_cast<float4*>(args.scores)[at] = *reinterpret_cast<float4*>(score);
    reinterpret_cast<float4*>(args.scores)[at + 1] = *reinterpret_cast<float4*>(score + 4);
#pragma unroll
    for (int d = 1; d <= 2; d *= 2) {
      const float other_first = __shfl_xor_sync(kAll, first, d);
      const float other_second = __shfl_xor_sync(kAll, second, d);
      second = fmaxf(fmaxf(second, other_second), fminf(first, other_first));
      first = fmaxf(first, other_first);
    }
    const float group_score = first + second;
    int rank = 0;
#pragma unroll
    for (int g = 0; g < 8; ++g) {
      const float other = __shfl_sync(kAll, group_score, g * 4);
      rank += other > group_score || (other == group_score && g < lane / 4);
    }
    uint32_t taken = rank < 4 ? 0u : 0xFFu;  // bit i: expert 8 l + i is out
    const uint32_t out_at_start = taken;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      uint32_t best = 0;
      int best_at = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const bool better = !(taken >> i & 1) && key[i] > best;
        best = better ? key[i] : best;
        best_at = better ? i : best_at;
      }
      const uint32_t top = __reduce_max_sync(kAll, best);
      const int winner = __ffs(static_cast<int>(__ballot_sync(kAll, best == top))) - 1;
      if (lane == winner) taken |= 1u << best_at;
    }
    const uint32_t chosen = taken & ~out_at_start;
    int place = __popc(chosen);
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int below = __shfl_up_sync(kAll, place, d);
      if (lane >= d) place += below;
    }
    place -= __popc(chosen);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (chosen >> i & 1) {
        chosen_score[warp][place] = score[i];
        chosen_idx[warp][place] = lane * 8 + i;
        ++place;
      }
    }
    __syncwarp();
    if (lane < 8) {
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < 8; ++k) sum += chosen_score[warp][k];
      args.topk_idx[static_cast<int64_t>(token) * 8 + lane] = chosen_idx[warp][lane];
      args.topk_weight[static_cast<int64_t>(token) * 8 + lane] =
          chosen_score[warp][lane] / (sum + 1e-20f) * args.scaling;
    }
    __syncwarp();
  }
}

// ---- quantisers

__device__ __forceinline__ void unpack8(const uint4& v, float (&x)[8]) {
  const uint32_t part[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(part[i] << 16);
    x[2 * i + 1] = __uint_as_float(part[i] & 0xFFFF0000u);
  }
}

// Quantises 8 elements a lane; the 16 lanes of a half warp share the scale, which is returned.
__device__ __forceinline__ float quantise8(const float (&y)[8], ScaleRounding rounding, uint2& q) {
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) amax = fmaxf(amax, fabsf(y[i]));
#pragma unroll
  for (int d = 8; d > 0; d /= 2) amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, d));
  float scale = fmaxf(amax, 1e-4f) * (1.0f / 448.0f);
  if (rounding == ScaleRounding::kPowerOfTwo) {
    const uint32_t bits = __float_as_uint(scale);
    scale = __uint_as_float((bits + 0x7FFFFFu) & 0x7F800000u);
  }
  const float inverse = 1.0f / scale;
  uint32_t pair[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pair[i] = __nv_cvt_float2_to_fp8x2(float2{y[2 * i] * inverse, y[2 * i + 1] * inverse},
                                       __NV_SATFINITE, __NV_E4M3);
  }
  q = uint2{pair[0] | pair[1] << 16, pair[2] | pair[3] << 16};
  return scale;
}

// One block walks neighbouring rows; the next row is on its way while this one is reduced.
template <int kVectors>
__global__ void __launch_bounds__(128, kVectors > 2 ? 5 : 8)
    rmsnorm_quantise_kernel(const RmsnormQuantiseArgs args) {
  __shared__ float partial[2][4];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int vectors = args.width / 8;
  const int per_block =
      (args.num_rows + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  const int begin = static_cast<int>(blockIdx.x) * per_block;
  const int end = min(begin + per_block, args.num_rows);
  const uint4 zero = {0, 0, 0, 0};
  uint4 next[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int v = i * 128 + thread;
    next[i] =
        v < vectors && begin < end
            ? __ldcs(static_cast<const uint4*>(args.x) + static_cast<int64_t>(begin) * vectors + v)
            : zero;
  }
  for (int row = begin; row < end; ++row) {
    uint4 now[kVectors];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) now[i] = next[i];
    if (row + 1 < end) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const int v = i * 128 + thread;
        if (v < vectors) {
          next[i] = __ldcs(static_cast<const uint4*>(args.x) +
                           static_cast<int64_t>(row + 1) * vectors + v);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float x[8];
      unpack8(now[i], x);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum = fmaf(x[j], x[j], sum);
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, d);
    float* slot = partial[row & 1];
    if (lane == 0) slot[warp] = sum;
    __syncthreads();
    sum = (slot[0] + slot[1]) + (slot[2] + slot[3]);
    const float rstd = rsqrtf(sum / static_cast<float>(args.width) + args.eps);
    if (thread == 0) args.rstd[row] = rstd;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int v = i * 128 + thread;
      float x[8], g[8];
      unpack8(now[i], x);
      unpack8(v < vectors ? __ldg(static_cast<const uint4*>(args.gain) + v) : zero, g);
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] = g[j] * (x[j] * rstd);
      uint2 q;
      const float scale = quantise8(x, args.rounding, q);
      if (v < vectors) {
        static_cast<uint2*>(args.q)[static_cast<int64_t>(row) * vectors + v] = q;
        if (lane % 16 == 0)
          args.scale[static_cast<int64_t>(v / 16) * args.scale_stride + row] = scale;
      }
    }
  }
}

// Eight rows of a page a block, two in flight; the page's expert is found by bisection.
__global__ void __launch_bounds__(256) swiglu_quantise_kernel(const SwigluQuantiseArgs args) {
  const int position = static_cast<int>(blockIdx.x);
  if (position >= __ldg(args.page_begin + args.num_experts)) return;
  int low = 0, high = args.num_experts;  // the expert is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (__ldg(args.page_begin + middle) <= position) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const int used = __ldg(args.counts + low) - (position - __ldg(args.page_begin + low)) * 128;
  const int first = static_cast<int>(blockIdx.y) * 8;
  const int vectors = args.width / 8;
  const int v = static_cast<int>(threadIdx.x);
  const bool works = v < vectors;
#pragma unroll 4
  for (int r = first; r < min(first + 8, used); ++r) {
    const int64_t row = static_cast<int64_t>(position) * 128 + r;
    const uint4* src = static_cast<const uint4*>(args.gate_up) + row * 2 * vectors;
    const uint4 zero = {0, 0, 0, 0};
    const uint4 gate_bits = works ? __ldcs(src + v) : zero;
    const uint4 up_bits = works ? __ldcs(src + vectors + v) : zero;
    const float weight = __ldg(args.row_weight + row);
    float gate[8], up[8];
    unpack8(gate_bits, gate);
    unpack8(up_bits, up);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      gate[i] = weight * (__fdividef(gate[i], 1.0f + __expf(-gate[i])) * up[i]);
    }
    uint2 q;
    const float scale = quantise8(gate, args.rounding, q);
    if (works) {
      static_cast<uint2*>(args.q)[row * vectors + v] = q;
      if (v % 16 == 0) args.scale[static_cast<int64_t>(v / 16) * args.scale_stride + row] = scale;
    }
  }
}

}  // namespace hadal::cuda
