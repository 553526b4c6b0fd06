// The products of thin.cuh with weights in block FP8: c = (or +=) a (e4m3 * scale)^T.
//
// Weights are read as e4m3 and become bf16 in shared memory, rounded once after their scale: the
// bits are those of the products with dequantised weights, for half of the bytes
// (tests/ops_cuda/gemm_test.cc).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/bf16_gemm/thin.cuh"
#include "ops/cuda/detail/e4m3.cuh"

namespace hadal::cuda {

// kFew: rows of a, 8 to 64.
template <int kFew>
struct Bf16GemmThinE4m3 {
  static constexpr int kCols = 64;    // of c, a block
  static constexpr int kDepth = 128;  // K of a stage: 128 bytes of weights, and one scale
  static constexpr int kBytesRaw = kCols * kDepth;
  static constexpr int kBytesX = kFew * kDepth * 2;
  static constexpr int kBytesW = kCols * kDepth * 2;  // bf16
  static constexpr int kStages = kFew <= 16 ? 7 : 6;
  static constexpr int kThreads = 160;  // a matrix warpgroup, which converts too, and a copy warp
  static constexpr int kSharedBytes =
      1024 + 2 * kBytesW + kStages * (kBytesRaw + kBytesX) + 2 * kStages * 8;

  uint8_t *w, *raw, *x;  // [2] tiles, [kStages] tiles
  uint64_t *full, *empty;
  __device__ explicit Bf16GemmThinE4m3(uint8_t* shared) {
    w = shared;
    raw = w + 2 * kBytesW;
    x = raw + kStages * kBytesRaw;
    full = reinterpret_cast<uint64_t*>(x + kStages * kBytesX);
    empty = full + kStages;
  }
};

// 64 columns x 128 of K by 128 threads, from e4m3 rows of 128 bytes to two tiles of bf16, all
// swizzled by 128 bytes.
__device__ inline void bf16_of_e4m3_tile(const uint8_t* raw, uint8_t* w, float scale) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = i * 128 + static_cast<int>(threadIdx.x), row = at / 8, unit = at % 8;
    const uint4 from = *reinterpret_cast<const uint4*>(raw + row * 128 + ((unit ^ (row % 8)) << 4));
    uint4 to[2];
    widen_e4m3(from, scale, to);
    // Eight threads write one row of both tiles: each half begins with another unit.
    uint8_t* const line = w + unit / 4 * kBf16TileBytes + row * 128;
    const int second = unit / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int part = half ^ second;
      const uint4 value = part == 0 ? to[0] : to[1];
      *reinterpret_cast<uint4*>(line + (((unit % 4 * 2 + part) ^ (row % 8)) << 4)) = value;
    }
  }
}

template <Bf16Work kWork, int kFew>
__global__ void __launch_bounds__(Bf16GemmThinE4m3<kFew>::kThreads)
    bf16_gemm_thin_e4m3_kernel_sm90(const __grid_constant__ Bf16GemmArgs args,
                                    const __grid_constant__ CUtensorMap map_x,
                                    const __grid_constant__ CUtensorMap map_w) {
  using C = Bf16GemmThinE4m3<kFew>;
  extern __shared__ uint8_t shared[];
  const C s(shared + (1024 - smem_addr(shared) % 1024) % 1024);
  bf16_thin_start<C::kStages>(map_x, map_w, s.full, s.empty);
  const Bf16ThinTile<kWork> tile(args);
  if (!tile.works) return;
  const int stages = (args.k + C::kDepth - 1) / C::kDepth;
  const int chunks = (tile.rows + kFew - 1) / kFew;
  int stage = 0;
  uint32_t parity = 0;
  if (threadIdx.x >= 128) {
    if (threadIdx.x != 128) return;
#pragma unroll 1
    for (int i = 0; i < stages * chunks; ++i) {
      const int depth = i % stages * C::kDepth, row = i / stages * kFew;
      barrier_wait(s.empty + stage, parity ^ 1);
      uint64_t* const full = s.full + stage;
      barrier_expect(full, C::kBytesRaw + C::kBytesX);
      copy_box3(s.raw + stage * C::kBytesRaw, &map_w, depth, tile.col, tile.batch, full);
      uint8_t* const x = s.x + stage * C::kBytesX;
      copy_box3(x, &map_x, depth, row, tile.a_batch, full);
      copy_box3(x + C::kBytesX / 2, &map_x, depth + 64, row, tile.a_batch, full);
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
    return;
  }
  const int scale_row = (args.b_scale_row + tile.batch * args.b_scale_batch_rows + tile.col) / 128;
  const float* const scales =
      args.b_scale + tile.batch * args.b_scale_batch_stride + scale_row * args.b_scale_row_stride;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    float acc[kFew / 2];
#pragma unroll
    for (float& value : acc) value = 0.0f;
    uint64_t* last = nullptr;  // whose products may still run
    float scale = __ldg(scales);
    for (int i = 0; i < stages; ++i) {
      const float next_scale = i + 1 < stages ? __ldg(scales + i + 1) : 0.0f;
      const int at = uniform(stage);
      uint8_t* const w_tile = s.w + i % 2 * C::kBytesW;
      barrier_wait(s.full + stage, parity);
      // The products that read this half of `w`, two stages ago, have ended: see mma_wait below.
      bf16_of_e4m3_tile(s.raw + at * C::kBytesRaw, w_tile, scale);
      async_proxy_fence();
      named_sync(1, 128);
      const uint64_t w = descriptor_k(smem_addr(w_tile));
      const uint64_t x = descriptor_k(smem_addr(s.x) + at * C::kBytesX);
      mma_fence();
#pragma unroll
      for (int k = 0; k < C::kDepth / 16; ++k)
        mma_bf16_few<0>(acc, advance(w, k / 4 * kBf16TileBytes + k % 4 * 32),
                        advance(x, k / 4 * (C::kBytesX / 2) + k % 4 * 32));
      mma_commit();
      mma_wait<1>();
      if (last != nullptr && threadIdx.x == 0) barrier_arrive(last);
      last = s.empty + stage;
      scale = next_scale;
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
    mma_wait<0>();
    mma_touch(acc);
    named_sync(1, 128);
    if (last != nullptr && threadIdx.x == 0) barrier_arrive(last);
    bf16_thin_store(args, tile, chunk * kFew, acc);
  }
}

}  // namespace hadal::cuda
