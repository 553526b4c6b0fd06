// A mixture of experts for few tokens: a block for eight hidden units (up), for sixteen outputs
// (down); its warps share K.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/gemv/tile.cuh"

namespace hadal::cuda {

inline constexpr int kMoeUnits = 8;     // hidden units of an up block: rows of w1 over rows of w3
inline constexpr int kMoeUpWarps = 4;   // of it
inline constexpr int kMoeOutputs = 16;  // of a down block
inline constexpr int kMoeDownWarps = 16;

// A warp's elements of the model width.
__host__ __device__ inline int moe_up_share(int d) {
  return ((d + kMoeUpWarps - 1) / kMoeUpWarps + 127) / 128 * 128;
}

// blockIdx.x: eight units of the shared expert, then of each choice; blockIdx.y: a token. The
// shared ones come first: their blocks are in place early, and ask for their weights while the
// choices are still being made.
template <GemvWeight kType>
__global__ void __launch_bounds__(kMoeUpWarps * 32, 4)
    moe_up_kernel(const __grid_constant__ MoeFewArgs args) {
  constexpr int kBytes = GemvLoad<kType>::kBytes;
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ float2 of_warp[kMoeUpWarps][kMoeUnits];
  let_next_kernel_start();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int token = static_cast<int>(blockIdx.y), block = static_cast<int>(blockIdx.x);
  const int shared_blocks = args.shared_f / kMoeUnits;
  const bool is_shared = block < shared_blocks;
  int choice = 0, unit = block * kMoeUnits, expert = 0;
  float weight = 1.0f;
  if (!is_shared) {
    const int blocks = args.f / kMoeUnits;
    choice = (block - shared_blocks) / blocks;
    unit = (block - shared_blocks - choice * blocks) * kMoeUnits;
    wait_for_previous_kernel();
    expert = __ldg(args.topk_idx + token * args.idx_row_stride + choice) - args.first_expert;
    weight = __ldg(args.topk_weight + token * args.weight_row_stride + choice);
    if (expert < 0 || expert >= args.num_experts) return;
  }
  const int row = unit + lane / 4;
  const TileRows rows{{expert_row<kBytes>(is_shared ? args.shared_w1 : args.w1, expert, row),
                       expert_row<kBytes>(is_shared ? args.shared_w3 : args.w3, expert, row)}};
  const int share = moe_up_share(args.d), begin = min(warp * share, args.d);
  const int end = min(begin + share, args.d);
  TileProduct<kType> product(rows, begin, end);
  if (is_shared) wait_for_previous_kernel();
  uint8_t* const staged = shared + warp * staged_bytes<kType>(share);
  const float scale = stage_row<kType>(
      static_cast<const __nv_bfloat16*>(args.x) + token * args.x_row_stride + begin, end - begin,
      staged);
  float sum[4];
  product.run(staged, 0, sum);
  if (lane % 4 == 0) of_warp[warp][lane / 4] = float2{sum[0] * scale, sum[2] * scale};
  __syncthreads();
  if (threadIdx.x >= kMoeUnits) return;
  float gate = 0.0f, up = 0.0f;
#pragma unroll
  for (int w = 0; w < kMoeUpWarps; ++w) {
    gate += of_warp[w][threadIdx.x].x;
    up += of_warp[w][threadIdx.x].y;
  }
  // Rounded as the rows that the general path stores.
  gate = __bfloat162float(__float2bfloat16(gate));
  up = __bfloat162float(__float2bfloat16(up));
  const int width = is_shared ? args.shared_f : args.f;
  auto* const to =
      static_cast<__nv_bfloat16*>(is_shared ? args.shared_hidden : args.hidden) +
      static_cast<int64_t>(is_shared ? token : token * args.num_choices + choice) * width + unit +
      threadIdx.x;
  *to = __float2bfloat16(weight * (gate / (1.0f + expf(-gate)) * up));
}

// Elements of a hidden row that a warp takes at once, so that the block's rounds are short.
inline int moe_down_share(int choices, int f, int shared_f) {
  constexpr int kMost = 1280;  // so that all warps' rows fit in shared memory
  int best = 0, best_cost = 0;
  for (int share = 128; share <= kMost; share += 128) {
    const auto parts = [&](int width) { return (width + share - 1) / share; };
    const int tasks = choices * parts(f) + parts(shared_f);
    const int cost = (tasks + kMoeDownWarps - 1) / kMoeDownWarps * (share + 128);
    if (best == 0 || cost < best_cost) best = share, best_cost = cost;
  }
  return best;
}

template <GemvWeight kType>
__global__ void __launch_bounds__(kMoeDownWarps * 32)
    moe_down_kernel(const __grid_constant__ MoeFewArgs args) {
  constexpr int kBytes = GemvLoad<kType>::kBytes;
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ float of_warp[kMoeDownWarps][kMoeOutputs];
  let_next_kernel_start();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int token = static_cast<int>(blockIdx.y);
  const int n0 = static_cast<int>(blockIdx.x) * kMoeOutputs;
  const int share = args.down_share;
  const int shared_parts = (args.shared_f + share - 1) / share;
  const int parts = args.num_choices > 0 ? (args.f + share - 1) / share : 0;  // of a choice
  float2 sum{0.0f, 0.0f};
  bool waited = false;
  const auto wait = [&] {
    if (!waited) wait_for_previous_kernel();
    waited = true;
  };
  for (int task = warp; task < shared_parts + args.num_choices * parts; task += kMoeDownWarps) {
    const bool is_shared = task < shared_parts;
    const int choice = is_shared ? 0 : (task - shared_parts) / parts;
    const int part = is_shared ? task : task - shared_parts - choice * parts;
    const int width = is_shared ? args.shared_f : args.f;
    int expert = 0;
    if (!is_shared) {
      wait();
      expert = __ldg(args.topk_idx + token * args.idx_row_stride + choice) - args.first_expert;
      if (expert < 0 || expert >= args.num_experts) continue;
    }
    const ExpertMatrices& w = is_shared ? args.shared_w2 : args.w2;
    const TileRows rows{{expert_row<kBytes>(w, expert, n0 + lane / 4),
                         expert_row<kBytes>(w, expert, n0 + 8 + lane / 4)}};
    const int begin = part * share, end = min(begin + share, width);
    TileProduct<kType> product(rows, begin, end);
    wait();
    const int64_t row = is_shared ? token : token * args.num_choices + choice;
    const auto* const x =
        static_cast<const __nv_bfloat16*>(is_shared ? args.shared_hidden : args.hidden);
    uint8_t* const staged = shared + warp * staged_bytes<kType>(share);
    const float scale = stage_row<kType>(x + row * width + begin, end - begin, staged);
    float more[4];
    product.run(staged, 0, more);
    sum.x += more[0] * scale;
    sum.y += more[2] * scale;
    __syncwarp();
  }
  wait();
  if (lane % 4 == 0) {
    of_warp[warp][lane / 4] = sum.x;
    of_warp[warp][lane / 4 + 8] = sum.y;
  }
  __syncthreads();
  if (threadIdx.x >= kMoeOutputs) return;
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < kMoeDownWarps; ++w) total += of_warp[w][threadIdx.x];
  if (args.sums.size > 0) {
    const uint32_t number = peer_sum_number(args.sums);
    total = peer_sum_of(args.sums, number, int64_t{token} * args.d + n0 + threadIdx.x, total);
    __syncwarp((1u << kMoeOutputs) - 1);
    if (threadIdx.x == 0)
      peer_sum_is_made(args.sums, number, static_cast<int>(gridDim.x * gridDim.y));
  }
  const int64_t at = token * args.y_row_stride + n0 + threadIdx.x;
  if (args.y_is_f32) {
    static_cast<float*>(args.y)[at] += total;
  } else {
    auto* const to = static_cast<__nv_bfloat16*>(args.y) + at;
    *to = __float2bfloat16(__bfloat162float(*to) + total);
  }
}

}  // namespace hadal::cuda
