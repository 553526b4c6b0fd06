// FP8 weight gradients: copy engine, wgmma, f32 promotion after every page; persistent.
//
// A warpgroup copies, two multiply; each of the two owns 128 of a tile's 256 rows, 64 at a time, so
// that one's promotion runs under the other's products. Two blocks of a cluster work on
// neighbouring columns of the same rows, and each copies half of the rows for both: what the L2 has
// to deliver bounds this kernel. Sums that go to old values are added where those lie, without a
// wait for them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/detail/wgmma.cuh"
#include "ops/cuda/fp8_wgrad/config.h"
#include "ops/fp8_format.h"

namespace hadal::cuda {

// Walks this cluster's share of the tiles; every role of a block walks the same list. The columns
// of a block may lie past the last.
struct Fp8WgradTiles {
  using C = Fp8WgradConfig;
  const Fp8WgradArgs& args;
  int unit, stride, rank, row_tiles, col_pairs;
  int batch = 0, row = 0, col = 0, first_page = 0, pages = 0;

  __device__ Fp8WgradTiles(const Fp8WgradArgs& a, uint32_t rank_in_cluster)
      : args(a),
        unit(static_cast<int>(blockIdx.x) / C::kCluster),
        stride(static_cast<int>(gridDim.x) / C::kCluster),
        rank(static_cast<int>(rank_in_cluster)),
        row_tiles((a.n + C::kRows - 1) / C::kRows),
        col_pairs((a.k + C::kCols * C::kCluster - 1) / (C::kCols * C::kCluster)) {}
  __device__ bool next() {
    const int tiles = row_tiles * col_pairs;
    while (unit < tiles * args.batches) {
      batch = unit / tiles;
      const int local = unit - batch * tiles;
      unit += stride;
      row = local % row_tiles * C::kRows;
      col = (local / row_tiles * C::kCluster + rank) * C::kCols;
      if (args.page_begin == nullptr) {
        first_page = batch * args.part_pages;
        pages = min(args.part_pages, args.pages - first_page);
      } else {
        first_page = __ldg(args.page_begin + batch);
        pages = min(__ldg(args.page_begin + batch + 1), args.pages) - first_page;
      }
      // An expert without rows adds nothing; a part without pages is zero.
      if (pages > 0 || !args.accumulate) return true;
    }
    return false;
  }
};

struct Fp8WgradShared {
  using C = Fp8WgradConfig;
  uint8_t *a, *b;  // [kStages] tiles
  float* scales;   // [kStages][kRows + kCols]
  uint64_t *full, *empty;
  __device__ explicit Fp8WgradShared(uint8_t* raw) {
    a = raw;
    b = a + C::kStages * C::kBytesA;
    scales = reinterpret_cast<float*>(b + C::kStages * C::kBytesB);
    full = reinterpret_cast<uint64_t*>(scales + C::kStages * C::kScales);
    empty = full + C::kStages;
  }
};

__device__ inline void fp8_wgrad_copy(const Fp8WgradArgs& args, const CUtensorMap& map_a,
                                      const CUtensorMap& map_b, const Fp8WgradShared& s,
                                      uint32_t rank) {
  using C = Fp8WgradConfig;
  int stage = 0;
  uint32_t parity = 0;
  Fp8WgradTiles tiles(args, rank);
  while (tiles.next()) {
    const uint32_t scale_a_bytes = static_cast<uint32_t>(min(C::kRows, args.n - tiles.row)) * 4;
    const uint32_t scale_b_bytes =
        static_cast<uint32_t>(max(0, min(C::kCols, args.k - tiles.col))) * 4;
    const bool two = tiles.row + 128 < args.n;
    const int half = static_cast<int>(rank) * 128;  // the rows that this block copies for both
    const uint32_t bytes = static_cast<uint32_t>((two ? 256 : 128) * C::kDepth + C::kBytesB) +
                           scale_a_bytes + scale_b_bytes;
#pragma unroll 1
    for (int i = 0; i < tiles.pages; ++i) {
      const int page = tiles.first_page + i;
      barrier_wait(s.empty + stage, parity ^ 1);
      uint64_t* const full = s.full + stage;
      barrier_expect(full, bytes);
      if (rank == 0 || two)
        copy_box3_multicast(s.a + stage * C::kBytesA + half * C::kDepth, &map_a, 0,
                            tiles.row + half, page, full, 3);
      copy_box3(s.b + stage * C::kBytesB, &map_b, 0, tiles.col, page, full);
      float* const scales = s.scales + stage * C::kScales;
      copy_bytes(scales, args.scale_a + static_cast<int64_t>(page) * args.n + tiles.row,
                 scale_a_bytes, full);
      if (scale_b_bytes > 0)
        copy_bytes(scales + C::kRows,
                   args.scale_b + static_cast<int64_t>(page) * args.k + tiles.col, scale_b_bytes,
                   full);
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
  }
}

__device__ inline void fp8_wgrad_store(const Fp8WgradArgs& args, const float (&acc)[64], float* c,
                                       int rows, int cols, int row, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row + half * 8;
    if (r >= rows) continue;
    float* const line = c + r * args.c_row_stride + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      if (j * 8 + lane % 4 * 2 >= cols) break;
      const float2 value{acc[j * 4 + half * 2], acc[j * 4 + half * 2 + 1]};
      if (args.accumulate)
        add_in_memory(line + j * 8, value);
      else
        *reinterpret_cast<float2*>(line + j * 8) = value;
    }
  }
}

template <bool kShort>
__device__ inline void fp8_wgrad_add(float& sum, float partial, float scale) {
  sum = __fmaf_rn(partial, scale, sum);
  if constexpr (kShort) sum = ops::short_sum(sum);
}

template <bool kShort>
__device__ inline void fp8_wgrad_multiply(const Fp8WgradArgs& args, const Fp8WgradShared& s,
                                          uint32_t rank, int group) {
  using C = Fp8WgradConfig;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int stage = 0;
  uint32_t parity = 0;
  Fp8WgradTiles tiles(args, rank);
  while (tiles.next()) {
    float acc[2][64];
#pragma unroll
    for (int i = 0; i < 64; ++i) acc[0][i] = acc[1][i] = 0.0f;
    for (int page = 0; page < tiles.pages; ++page) {
      const int at = uniform(stage);
      const uint64_t a = descriptor_k(smem_addr(s.a) + at * C::kBytesA + group * 128 * C::kDepth);
      const uint64_t b = descriptor_k(smem_addr(s.b) + at * C::kBytesB);
      const float* const scales = s.scales + at * C::kScales;
      const float* const row_scale = scales + group * 128 + warp * 16 + lane / 4;
      const float2* const col_scale =
          reinterpret_cast<const float2*>(scales + C::kRows + lane % 4 * 2);
      barrier_wait(s.full + stage, parity);
      // NOTE: read before the products: what waits for shared memory between the instructions of
      // the matrix unit leaves the unit idle. Both halves of the rows use them.
      float2 col[16];
#pragma unroll
      for (int j = 0; j < 16; ++j) col[j] = col_scale[j * 4];
      // 64 rows of the page: a at `offset` bytes, sums in `sum`.
      const auto multiply = [&](float(&sum)[64], int offset, float lo, float hi) {
        float partial[64];
        mma_fence();
#pragma unroll
        for (int i = 0; i < 4; ++i)
          mma_e4m3_n128(partial, advance(a, offset + i * 32), advance(b, i * 32), i > 0);
        mma_commit();
        mma_wait<0>();
        mma_touch(partial);
#pragma unroll
        for (int j = 0; j < 16; ++j) {
          const int i = j * 4;
          fp8_wgrad_add<kShort>(sum[i], partial[i], lo * col[j].x);
          fp8_wgrad_add<kShort>(sum[i + 1], partial[i + 1], lo * col[j].y);
          fp8_wgrad_add<kShort>(sum[i + 2], partial[i + 2], hi * col[j].x);
          fp8_wgrad_add<kShort>(sum[i + 3], partial[i + 3], hi * col[j].y);
        }
      };
      multiply(acc[0], 0, row_scale[0], row_scale[8]);
      multiply(acc[1], 8192, row_scale[64], row_scale[72]);
      __syncwarp();
      if (lane < C::kCluster) barrier_arrive_at(s.empty + stage, static_cast<uint32_t>(lane));
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
    float* const c = args.c + tiles.batch * args.c_batch_stride +
                     static_cast<int64_t>(tiles.row + group * 128) * args.c_row_stride + tiles.col;
    const int rows = args.n - tiles.row - group * 128, cols = args.k - tiles.col;
    const int row = warp * 16 + lane / 4;
    fp8_wgrad_store(args, acc[0], c, rows, cols, row, lane);
    fp8_wgrad_store(args, acc[1], c, rows, cols, row + 64, lane);
  }
}

template <bool kShort>
__global__ void __launch_bounds__(Fp8WgradConfig::kThreads, 1)
    fp8_wgrad_kernel_sm90(const __grid_constant__ Fp8WgradArgs args,
                          const __grid_constant__ CUtensorMap map_a,
                          const __grid_constant__ CUtensorMap map_b) {
  using C = Fp8WgradConfig;
  extern __shared__ uint8_t raw[];
  const Fp8WgradShared s(raw + (1024 - smem_addr(raw) % 1024) % 1024);
  const uint32_t rank = cluster_rank();
  if (threadIdx.x == 0) {
    prefetch_map(&map_a);
    prefetch_map(&map_b);
    for (int i = 0; i < C::kStages; ++i) {
      barrier_init(s.full + i, 1);
      barrier_init(s.empty + i, 8 * C::kCluster);
    }
    barrier_init_fence();
  }
  cluster_sync();
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int group = uniform(static_cast<int>(threadIdx.x) / 128);
  if (group == 0) {
    registers_shrink<24>();
    if (threadIdx.x == 0) fp8_wgrad_copy(args, map_a, map_b, s, rank);
  } else {
    registers_grow<240>();
    fp8_wgrad_multiply<kShort>(args, s, rank, group - 1);
  }
  // A block may not leave while the other still writes or signals into its shared memory.
  cluster_sync();
}

}  // namespace hadal::cuda
