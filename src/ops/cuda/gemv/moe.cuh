// A mixture of experts for few tokens: a warp for a hidden unit (up), a block for four outputs
// (down).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/gemv/kernel.cuh"

namespace hadal::cuda {

// sum[o] += row o . x over this lane's share of the elements begin .. end - 1, begin a multiple
// of 16.
template <GemvWeight kType, int kOutputs>
__device__ void add_dots(const ExpertRow (&row)[kOutputs], const __nv_bfloat16* x, int begin,
                         int end, float (&sum)[kOutputs]) {
  using Load = GemvLoad<kType>;
  constexpr int kElements = Load::kElements, kStep = 32 * kElements;
  constexpr int kUnroll = 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int first = begin + lane * kElements; first < end; first += kUnroll * kStep) {
    int4 raw[kUnroll][kOutputs];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const int k = first + u * kStep;
        if (k < end)
          raw[u][o] = __ldg(reinterpret_cast<const int4*>(row[o].data + k * Load::kBytes));
      }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int k = first + u * kStep;
      if (k >= end) break;
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

// blockIdx.y is the shared expert of a token, then a choice of one. The shared ones come first:
// their blocks are in place early, and call for their weights while the choices are still being
// made.
template <GemvWeight kType>
__global__ void __launch_bounds__(GemvConfig::kWarps * 32)
    moe_up_kernel(const __grid_constant__ MoeFewArgs args) {
  constexpr int kBytes = GemvLoad<kType>::kBytes;
  let_next_kernel_start();
  const int with_shared = args.shared_f > 0 ? args.num_tokens : 0;
  const int number = static_cast<int>(blockIdx.y);
  const bool shared = number < with_shared;
  const int task = number - with_shared;  // of the choices
  const int width = shared ? args.shared_f : args.f;
  const int unit =
      static_cast<int>(blockIdx.x) * GemvConfig::kWarps + static_cast<int>(threadIdx.x) / 32;
  if (shared && unit < width) {
    prefetch_l2(expert_row<kBytes>(args.shared_w1, 0, unit).data, args.d * kBytes);
    prefetch_l2(expert_row<kBytes>(args.shared_w3, 0, unit).data, args.d * kBytes);
  }
  wait_for_previous_kernel();
  if (unit >= width) return;
  const int token = shared ? number : task / args.num_choices;
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
  add_dots<kType>(rows, static_cast<const __nv_bfloat16*>(args.x) + token * args.x_row_stride, 0,
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

inline constexpr int kMoeDownRows = 4;   // outputs of a block
inline constexpr int kMoeDownWarps = 8;  // that share the choices and pieces of the shared expert
inline constexpr int kMoeDownPiece = 2048;  // most elements of such a piece

template <GemvWeight kType>
__global__ void __launch_bounds__(kMoeDownWarps * 32)
    moe_down_kernel(const __grid_constant__ MoeFewArgs args) {
  constexpr int kBytes = GemvLoad<kType>::kBytes;
  __shared__ float of_warp[kMoeDownWarps][kMoeDownRows];
  let_next_kernel_start();
  const int n0 = static_cast<int>(blockIdx.x) * kMoeDownRows;
  const int token = static_cast<int>(blockIdx.y);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  // Row r of an expert's matrix; the last again where there are no more.
  const auto rows_of = [&](const ExpertMatrices& w, int expert, ExpertRow(&row)[kMoeDownRows]) {
#pragma unroll
    for (int r = 0; r < kMoeDownRows; ++r)
      row[r] = expert_row<kBytes>(w, expert, min(n0 + r, args.d - 1));
  };
  if (args.shared_f > 0 && warp < kMoeDownRows)
    prefetch_l2(expert_row<kBytes>(args.shared_w2, 0, min(n0 + warp, args.d - 1)).data,
                args.shared_f * kBytes);
  wait_for_previous_kernel();
  const int pieces = (args.shared_f + kMoeDownPiece - 1) / kMoeDownPiece;
  const int piece = pieces > 0 ? (args.shared_f / 16 + pieces - 1) / pieces * 16 : 0;
  ExpertRow row[kMoeDownRows];
  float sum[kMoeDownRows] = {};
  for (int part = warp; part < args.num_choices + pieces; part += kMoeDownWarps) {
    if (part < args.num_choices) {
      const int expert = __ldg(args.topk_idx + token * args.idx_row_stride + part);
      if (expert < 0 || expert >= args.num_experts) continue;
      rows_of(args.w2, expert, row);
      add_dots<kType>(row,
                      static_cast<const __nv_bfloat16*>(args.hidden) +
                          static_cast<int64_t>(token * args.num_choices + part) * args.f,
                      0, args.f, sum);
    } else {
      const int begin = (part - args.num_choices) * piece;
      rows_of(args.shared_w2, 0, row);
      add_dots<kType>(row,
                      static_cast<const __nv_bfloat16*>(args.shared_hidden) +
                          static_cast<int64_t>(token) * args.shared_f,
                      begin, min(begin + piece, args.shared_f), sum);
    }
  }
#pragma unroll
  for (int r = 0; r < kMoeDownRows; ++r) {
    const float total = sum_of_warp(sum[r]);
    if (lane == 0) of_warp[warp][r] = total;
  }
  __syncthreads();
  const int n = n0 + static_cast<int>(threadIdx.x);
  if (threadIdx.x >= kMoeDownRows || n >= args.d) return;
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < kMoeDownWarps; ++w) total += of_warp[w][threadIdx.x];
  const int64_t at = token * args.y_row_stride + n;
  if (args.y_is_f32) {
    static_cast<float*>(args.y)[at] += total;
  } else {
    auto* const to = static_cast<__nv_bfloat16*>(args.y) + at;
    *to = __float2bfloat16(__bfloat162float(*to) + total);
  }
}

}  // namespace hadal::cuda
