// A mixture of experts for few tokens: a warp for a hidden unit (up), a warp for an output (down).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/gemv/kernel.cuh"
#include "ops/cuda/gemv/moe.h"

namespace hadal::cuda {

// A row of an expert's matrix and its scales.
struct ExpertRow {
  const char* data;
  const float* scale;
};
template <int kBytes>
__device__ ExpertRow expert_row(const ExpertMatrices& w, int expert, int row) {
  return {
      static_cast<const char*>(w.data) + (expert * w.expert_stride + row * w.row_stride) * kBytes,
      w.scale + expert * w.scale_expert_stride + (w.scale_row + row) / 128 * w.scale_row_stride};
}

// sum[o] += row o . x over this lane's share of `count` elements.
template <GemvWeight kType, int kOutputs>
__device__ void add_dots(const ExpertRow (&row)[kOutputs], const __nv_bfloat16* x, int count,
                         float (&sum)[kOutputs]) {
  using Load = GemvLoad<kType>;
  constexpr int kElements = Load::kElements, kStep = 32 * kElements;
  constexpr int kUnroll = kOutputs > 1 ? 4 : 8;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int first = lane * kElements; first < count; first += kUnroll * kStep) {
    int4 raw[kUnroll][kOutputs];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const int k = first + u * kStep;
        if (k < count)
          raw[u][o] = __ldg(reinterpret_cast<const int4*>(row[o].data + k * Load::kBytes));
      }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int k = first + u * kStep;
      if (k >= count) break;
      float a[kElements];
      load_row(x + k, a);
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        float b[kElements];
        Load::unpack(raw[u][o], b);
        float part = 0.0f;
#pragma unroll
        for (int i = 0; i < kElements; ++i) part = fmaf(a[i], b[i], part);
        if constexpr (kType == GemvWeight::kE4M3) part *= __ldg(row[o].scale + k / 128);
        sum[o] += part;
      }
    }
  }
}

__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(0xffffffff, value, d);
  return value;
}

// blockIdx.y is a choice of a token, then the shared expert of one.
template <GemvWeight kType>
__global__ void __launch_bounds__(GemvConfig::kWarps * 32)
    moe_up_kernel(const __grid_constant__ MoeFewArgs args) {
  constexpr int kBytes = GemvLoad<kType>::kBytes;
  let_next_kernel_start();
  const int task = static_cast<int>(blockIdx.y), routed = args.num_tokens * args.num_choices;
  const bool shared = task >= routed;
  const int width = shared ? args.shared_f : args.f;
  const int unit =
      static_cast<int>(blockIdx.x) * GemvConfig::kWarps + static_cast<int>(threadIdx.x) / 32;
  if (shared && unit < width) {
    prefetch_l2(expert_row<kBytes>(args.shared_w1, 0, unit).data, args.d * kBytes);
    prefetch_l2(expert_row<kBytes>(args.shared_w3, 0, unit).data, args.d * kBytes);
  }
  wait_for_previous_kernel();
  if (unit >= width) return;
  const int token = shared ? task - routed : task / args.num_choices;
  int expert = 0;
  float weight = 1.0f;
  if (!shared) {
    const int choice = task % args.num_choices;
    expert = __ldg(args.topk_idx + token * args.idx_row_stride + choice);
    weight = __ldg(args.topk_weight + token * args.weight_row_stride + choice);
    if (expert < 0 || expert >= args.num_experts) return;
  }
  const ExpertRow rows[2] = {expert_row<kBytes>(shared ? args.shared_w1 : args.w1, expert, unit),
                             expert_row<kBytes>(shared ? args.shared_w3 : args.w3, expert, unit)};
  float sum[2] = {};
  add_dots<kType>(rows, static_cast<const __nv_bfloat16*>(args.x) + token * args.x_row_stride,
                  args.d, sum);
  // Rounded as the rows that the general path stores.
  const float gate = __bfloat162float(__float2bfloat16(sum_of_warp(sum[0])));
  const float up = __bfloat162float(__float2bfloat16(sum_of_warp(sum[1])));
  if (threadIdx.x % 32 != 0) return;
  const float value = weight * (gate / (1.0f + expf(-gate)) * up);
  auto* const to = static_cast<__nv_bfloat16*>(shared ? args.shared_hidden : args.hidden) +
                   static_cast<int64_t>(shared ? token : task) * width + unit;
  *to = __float2bfloat16(value);
}

template <GemvWeight kType>
__global__ void __launch_bounds__(GemvConfig::kWarps * 32)
    moe_down_kernel(const __grid_constant__ MoeFewArgs args) {
  constexpr int kBytes = GemvLoad<kType>::kBytes;
  let_next_kernel_start();
  const int n =
      static_cast<int>(blockIdx.x) * GemvConfig::kWarps + static_cast<int>(threadIdx.x) / 32;
  const int token = static_cast<int>(blockIdx.y);
  if (n < args.d && args.shared_f > 0)
    prefetch_l2(expert_row<kBytes>(args.shared_w2, 0, n).data, args.shared_f * kBytes);
  wait_for_previous_kernel();
  if (n >= args.d) return;
  // The choices were made before the kernel that this one waits for.
  for (int choice = 0; choice < args.num_choices; ++choice) {
    const int expert = __ldg(args.topk_idx + token * args.idx_row_stride + choice);
    if (expert >= 0 && expert < args.num_experts)
      prefetch_l2(expert_row<kBytes>(args.w2, expert, n).data, args.f * kBytes);
  }
  float sum[1] = {};
  for (int choice = 0; choice < args.num_choices; ++choice) {
    const int expert = __ldg(args.topk_idx + token * args.idx_row_stride + choice);
    if (expert < 0 || expert >= args.num_experts) continue;
    const ExpertRow row[1] = {expert_row<kBytes>(args.w2, expert, n)};
    add_dots<kType>(row,
                    static_cast<const __nv_bfloat16*>(args.hidden) +
                        static_cast<int64_t>(token * args.num_choices + choice) * args.f,
                    args.f, sum);
  }
  if (args.shared_f > 0) {
    const ExpertRow row[1] = {expert_row<kBytes>(args.shared_w2, 0, n)};
    add_dots<kType>(row,
                    static_cast<const __nv_bfloat16*>(args.shared_hidden) +
                        static_cast<int64_t>(token) * args.shared_f,
                    args.shared_f, sum);
  }
  const float total = sum_of_warp(sum[0]);
  if (threadIdx.x % 32 != 0) return;
  const int64_t at = token * args.y_row_stride + n;
  if (args.y_is_f32) {
    static_cast<float*>(args.y)[at] += total;
  } else {
    auto* const to = static_cast<__nv_bfloat16*>(args.y) + at;
    *to = __float2bfloat16(__bfloat162float(*to) + total);
  }
}

}  // namespace hadal::cuda
