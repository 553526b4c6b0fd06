// The same products for few rows, where reading the weights is the limit.
//
// The weights' 64 columns of c are the matrix unit's rows and the few rows of a its columns, so
// that every block reads a part of the weights and none multiplies padding of 128 rows. K order and
// roundings, so the bits, are those of kernel.cuh (tests/ops_cuda/gemm_test.cc).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/bf16_gemm/kernel.cuh"

namespace hadal::cuda {

// kFew: rows of a, 8 to 64.
template <int kFew>
struct Bf16GemmThin {
  static constexpr int kCols = 64;   // of c, a block
  static constexpr int kDepth = 64;  // K of a stage: 128 bytes
  static constexpr int kBytesW = kCols * kDepth * 2;
  static constexpr int kBytesX = kFew * kDepth * 2;
  static constexpr int kStages = 12;
  static constexpr int kThreads = 160;  // a matrix warpgroup and a copy warp
  static constexpr int kSharedBytes = 1024 + kStages * (kBytesW + kBytesX) + 2 * kStages * 8;

  uint8_t *w, *x;  // [kStages] tiles
  uint64_t *full, *empty;
  __device__ explicit Bf16GemmThin(uint8_t* raw) {
    w = raw;
    x = w + kStages * kBytesW;
    full = reinterpret_cast<uint64_t*>(x + kStages * kBytesX);
    empty = full + kStages;
  }
};

// What this block makes: 64 columns of c, of one batch or of the page at one place.
template <Bf16Work kWork>
struct Bf16ThinTile {
  int batch, col, a_batch, rows;  // batch: of b; a_batch: of a
  int64_t c_batch;
  bool works = true;

  __device__ explicit Bf16ThinTile(const Bf16GemmArgs& args) {
    col = static_cast<int>(blockIdx.x) * 64;
    batch = a_batch = static_cast<int>(blockIdx.y);
    c_batch = batch;
    rows = args.m;
    if constexpr (kWork == Bf16Work::kPages) {
      const int place = batch;
      if (place >= min(args.places, __ldg(args.page_begin + args.batches))) {
        works = false;
        return;
      }
      int low = 0, high = args.batches;  // page_begin[low] <= place < page_begin[high]
      while (high - low > 1) {
        const int middle = (low + high) / 2;
        (__ldg(args.page_begin + middle) <= place ? low : high) = middle;
      }
      batch = low;
      rows = min(128, __ldg(args.counts + batch) - (place - __ldg(args.page_begin + batch)) * 128);
      a_batch = args.a_page == nullptr ? place : __ldg(args.a_page + place);
      const int c_page = args.c_page == nullptr ? place : __ldg(args.c_page + place);
      c_batch = c_page;
      // A page that the pool could not give: its rows are left out.
      works = a_batch >= 0 && a_batch < args.a.batches && c_page >= 0 && c_page < args.c_pages;
    }
  }
};

__device__ inline void bf16_thin_put(const Bf16GemmArgs& args, int64_t at, float value) {
  if (args.c_is_f32) {
    float* const to = static_cast<float*>(args.c) + at;
    *to = args.accumulate ? value + *to : value;
  } else {
    __nv_bfloat16* const to = static_cast<__nv_bfloat16*>(args.c) + at;
    *to = __float2bfloat16_rn(args.accumulate ? value + __bfloat162float(*to) : value);
  }
}

// Writes rows `first` and on of a tile: what the matrix warpgroup has of 64 columns x kFew rows.
template <Bf16Work kWork, int kSums>
__device__ void bf16_thin_store(const Bf16GemmArgs& args, const Bf16ThinTile<kWork>& tile,
                                int first, const float (&acc)[kSums]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t base = tile.c_batch * args.c_batch_stride;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int row = first + i / 4 * 8 + lane % 4 * 2 + i % 2;
    const int col = tile.col + warp * 16 + lane / 4 + i / 2 % 2 * 8;
    if (row < tile.rows && col < args.n)
      bf16_thin_put(args, base + row * args.c_row_stride + col, acc[i]);
  }
}

// Makes the barriers of the stages, and waits for the kernel before.
template <int kStages>
__device__ void bf16_thin_start(const CUtensorMap& map_x, const CUtensorMap& map_w, uint64_t* full,
                                uint64_t* empty) {
  if (threadIdx.x == 0) {
    prefetch_map(&map_x);
    prefetch_map(&map_w);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, 1);
    }
    barrier_init_fence();
  }
  __syncthreads();
  let_next_kernel_start();
  wait_for_previous_kernel();
}

template <Bf16Layout kLayout, Bf16Work kWork, int kFew>
__global__ void __launch_bounds__(Bf16GemmThin<kFew>::kThreads)
    bf16_gemm_thin_kernel_sm90(const __grid_constant__ Bf16GemmArgs args,
                               const __grid_constant__ CUtensorMap map_x,
                               const __grid_constant__ CUtensorMap map_w) {
  using C = Bf16GemmThin<kFew>;
  constexpr int kTransW = kLayout == Bf16Layout::kNt ? 0 : 1;
  extern __shared__ uint8_t raw[];
  const C s(raw + (1024 - smem_addr(raw) % 1024) % 1024);
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
      barrier_expect(full, C::kBytesW + C::kBytesX);
      uint8_t* const w = s.w + stage * C::kBytesW;
      if constexpr (kTransW)
        copy_box3(w, &map_w, tile.col, depth, tile.batch, full);
      else
        copy_box3(w, &map_w, depth, tile.col, tile.batch, full);
      copy_box3(s.x + stage * C::kBytesX, &map_x, args.k_repeat > 0 ? depth % args.k_repeat : depth,
                row, tile.a_batch, full);
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
    return;
  }
  for (int chunk = 0; chunk < chunks; ++chunk) {
    float acc[kFew / 2];
#pragma unroll
    for (float& value : acc) value = 0.0f;
    uint64_t* last = nullptr;  // whose products may still run
    for (int i = 0; i < stages; ++i) {
      const int at = uniform(stage);
      barrier_wait(s.full + stage, parity);
      const uint32_t w_addr = smem_addr(s.w) + at * C::kBytesW;
      const uint64_t w = kTransW ? descriptor_mn(w_addr, kBf16TileBytes) : descriptor_k(w_addr);
      const uint64_t x = descriptor_k(smem_addr(s.x) + at * C::kBytesX);
      mma_fence();
#pragma unroll
      for (int k = 0; k < C::kDepth / 16; ++k)
        mma_bf16_few<kTransW>(acc, advance(w, k * (kTransW ? 2048 : 32)), advance(x, k * 32));
      mma_commit();
      mma_wait<1>();
      if (last != nullptr && threadIdx.x == 0) barrier_arrive(last);
      last = s.empty + stage;
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
    mma_wait<0>();
    mma_touch(acc);
    if (last != nullptr && threadIdx.x == 0) barrier_arrive(last);
    bf16_thin_store(args, tile, chunk * kFew, acc);
  }
}

}  // namespace hadal::cuda
